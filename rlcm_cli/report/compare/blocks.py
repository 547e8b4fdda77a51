"""The numbers of a comparison arranged for people: small tables with a row a seed and a row a method.

All formats are made of these, so that they cannot tell different numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlcm_cli.report.compare.evaluations import PARTS, TOTAL
from rlcm_cli.report.run.levels import format_level

COST_NAMES = {
    "queries": "queries",
    "wall_seconds": "wall time",
    "cpu_seconds": "processor time",
    "forwards": "model forwards",
}
PART_NAMES = {"held_out_seeds": "held-out seeds", "held_out_prompts": "held-out prompts"}
NOTHING = "–"
Table = Mapping[str, Any]
"""What `tabulate` returns."""


@dataclass(frozen=True)
class Cell:
    """A number, or the mean over seeds with its interval."""

    value: float | None
    text: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """The numbers of a run, or the means of a method."""

    method: str
    run: str
    """Empty for the means."""
    seed: int | None
    """None for the means."""
    seeds: int
    """Of the method."""
    cells: Sequence[Cell]

    @property
    def is_shown(self) -> bool:
        """Whether people need the row: the means of one seed are that seed's numbers."""
        return self.seed is not None or self.seeds > 1

    @property
    def named_seed(self) -> str:
        """The seed, or of how many the means are."""
        return f"mean of {self.seeds}" if self.seed is None else str(self.seed)


@dataclass(frozen=True)
class NumberBlock:
    """A small table."""

    key: str
    """Of the block, for programs."""
    title: str
    columns: Mapping[str, str]
    """Name of a column for programs → for people."""
    rows: Sequence[Row]


def arrange(table: Table) -> list[NumberBlock]:
    """Arrange all numbers of a comparison in blocks, each with the same rows."""
    return [_training(table), *_held_out(table), *_costs(table)]


def define_terms(table: Table) -> list[str]:
    """Say in sentences what the numbers are."""
    methods = table["methods"]
    windows = sorted({window for method in methods for window in method["windows"]})
    several = [method for method in methods if len(method["seeds"]) > 1]
    said = " to ".join(map(str, dict.fromkeys([windows[0], windows[-1]])))
    lines = [
        f"reward: {table['reward']}",
        f"training: first, best and final are means of the first {said} iterations, the best {said} in a row and the "
        f"last {said}"
        if windows[-1] > 1
        else "training: first, best and final are the means of the first, the best and the last iteration",
    ]
    if any(method["held_out"] for method in methods):
        lines.append(
            "held-out images: means over prompts at the first, the best and the last evaluated checkpoint; the best "
            "has the highest reward that is trained for, on all held-out images"
        )
    chosen = "" if table["target_given"] else ", the highest reward that every run reaches"
    lines.append(
        f"cost: until a run's own curve first reaches {format_level(table['target'])}{chosen}; no mean where a seed "
        "never does"
    )
    level = f"{100 * table['confidence']:g} %"
    if several:
        lines.append(f"±: half of the {level} interval of the mean over seeds (Student's t, n − 1 degrees of freedom)")
    alone = [method["label"] for method in methods if len(method["seeds"]) == 1]
    if alone:
        lines.append(f"one seed, so no interval: {', '.join(alone)}")
    return lines


def name_speed_ups(table: Table) -> list[str]:
    """Say in a sentence for each cost how many times less each method needs than the slowest, where there are two."""
    lines = []
    for cost in table["costs"]:
        times = {method["label"]: method["reach"][cost]["speed_up"] for method in table["methods"]}
        known = {label: value for label, value in times.items() if value is not None}
        if len(known) > 1:
            slowest = table["slowest"][cost]
            shown = ", ".join(
                f"{label} {value:.{1 if value < 100 else 0}f}" for label, value in known.items() if label != slowest
            )
            lines.append(f"{COST_NAMES[cost]} to {format_level(table['target'])}, times less than {slowest}: {shown}")
    return lines


def _training(table: Table) -> NumberBlock:
    levels = ("first", "best", "final")

    def cells_of(method: Table, seed: int | None) -> list[Cell]:
        iterations = method["iterations"]
        return [
            _count(iterations, seed),
            *(_cell(method[level], seed, format_level) for level in levels),
        ]

    return NumberBlock("training", "Training reward", _same("iterations", *levels), _rows(table, cells_of))


def _held_out(table: Table) -> Iterator[NumberBlock]:
    found = [method["held_out"] for method in table["methods"] if method["held_out"]]
    names = list(dict.fromkeys(name for held_out in found for name in held_out["rewards"]))
    if len(names) > 1 and any(
        held_out["rewards"].get(TOTAL) == held_out["rewards"].get(names[1]) for held_out in found
    ):
        names.remove(names[1])  # the only reward that is trained for, with weight 1: the same numbers
    levels = ("first", "best", "final", "change")
    for name in names:
        for part in PARTS:
            if not any(part in held_out["rewards"].get(name, {}) for held_out in found):
                continue

            def cells_of(method: Table, seed: int | None, name: str = name, part: str = part) -> list[Cell]:
                reached = ((method["held_out"] or {}).get("rewards", {}).get(name) or {}).get(part) or {}
                best = [chosen["best"] for chosen in (method["held_out"] or {}).get("checkpoints", [])]
                cells = {level: _cell(reached.get(level), seed, format_level) for level in levels}
                number = None if seed is None or not reached else best[seed]
                at = Cell(number, NOTHING if number is None else str(number))
                return [cells["first"], cells["best"], at, cells["final"], cells["change"]]

            shown = name or table["held_out_reward"]
            yield NumberBlock(
                f"{part} {name}".strip(),
                f"{shown}, {PART_NAMES[part]}",
                {**_same("first", "best"), "best_checkpoint": "best checkpoint", **_same("final", "change")},
                _rows(table, cells_of),
            )


def _costs(table: Table) -> Iterator[NumberBlock]:
    costs = table["costs"]

    def reach(method: Table, seed: int | None) -> list[Cell]:
        return [_price(cost, method["reach"][cost], seed) for cost in costs]

    def total(method: Table, seed: int | None) -> list[Cell]:
        return [_cell(method["total"][cost], seed, partial(format_cost, cost)) for cost in costs]

    names = {cost: COST_NAMES[cost] for cost in costs}
    target = format_level(table["target"])
    yield NumberBlock("to_target", f"Cost of first reaching {target}", names, _rows(table, reach))
    yield NumberBlock("in_all", "Cost of the whole training", names, _rows(table, total))


def _same(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


def _rows(table: Table, cells_of: Callable[[Table, int | None], list[Cell]]) -> list[Row]:
    rows = []
    for method in table["methods"]:
        seeds = method["seeds"]
        for number, (run, seed) in enumerate(zip(method["runs"], seeds, strict=True)):
            rows.append(Row(method["label"], run, seed, len(seeds), cells_of(method, number)))
        rows.append(Row(method["label"], "", None, len(seeds), cells_of(method, None)))
    return rows


def _cell(spread: Table | None, seed: int | None, text_of: Callable[[float], str]) -> Cell:
    if spread is None:
        return Cell(None, NOTHING)
    if seed is not None:
        value = spread["of_each_seed"][seed]
        return Cell(value, text_of(value))
    return _mean(spread["mean"], spread["interval"], text_of)


def _mean(mean: float, interval: Sequence[float] | None, text_of: Callable[[float], str]) -> Cell:
    if interval is None:
        return Cell(mean, text_of(mean))
    low, high = interval
    return Cell(mean, f"{text_of(mean)} ± {text_of((high - low) / 2)}", (low, high))


def _count(values: Sequence[int], seed: int | None) -> Cell:
    if seed is not None:
        return Cell(values[seed], f"{values[seed]:,}")
    equal = len(set(values)) == 1
    return Cell(values[0] if equal else None, f"{values[0]:,}" if equal else f"{min(values):,} to {max(values):,}")


def _price(cost: str, price: Table, seed: int | None) -> Cell:
    if seed is not None:
        value = price["of_each_seed"][seed]
        return Cell(value, "never" if value is None else format_cost(cost, value))
    if price["price"] is None:
        seeds = len(price["of_each_seed"])
        return Cell(None, f"{price['reached']} of {seeds} reached it" if seeds > 1 or price["reached"] else "never")
    return _mean(price["price"], price["interval"], partial(format_cost, cost))


def format_cost(cost: str, value: float) -> str:
    """Return a cost as text, a time in the unit that fits it."""
    if not cost.endswith("seconds"):
        return f"{value:,.0f}"
    size, unit = next((unit for unit in ((3600, "h"), (60, "min")) if value >= 2 * unit[0]), (1, "s"))
    return f"{value / size:.1f} {unit}"
