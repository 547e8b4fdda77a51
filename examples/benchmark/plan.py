"""What a benchmark runs: methods, models, tasks and seeds of a plan in TOML, as the list of its runs."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = {"tasks", "models", "methods", "seeds", "processor_seconds", "until_target", "every"}


@dataclass(frozen=True)
class Target:
    """What the fixed images of a run have to reach, compared with those of its first checkpoint."""

    measure: str
    """A measure of `examples.benchmark.measure`."""
    factor: float = 1.0
    """The first value is multiplied by it …"""
    change: float = 0.0
    """… and this is added; a fall is asked for where the result is below the first value."""
    recognised: float = 0.0
    """Smallest share of images that the independent classifier recognises."""

    def bound(self, first: float) -> float:
        """Return what the measure has to reach from its first value."""
        return first * self.factor + self.change


@dataclass(frozen=True)
class Cell:
    """One run of a plan."""

    task: str
    model: str
    method: str
    seed: int
    preset: str
    """The task's preset, of `rlcm tasks`."""
    settings: tuple[str, ...]
    """Of --set: the task's, those of the task on the model, the method's, its on the model, its on the task, and its
    on the task with the model."""
    target: Target | None
    processor_seconds: float | None
    """Of sampling, scoring and training, after which the run ends; None: at the preset's iterations."""
    until_target: bool
    every: int
    """Iterations between two evaluations."""

    @property
    def name(self) -> str:
        """Name of its folder and of its file of results."""
        return f"{self.task}-{self.model}-{self.method}-{self.seed}"


def read_plan(path: Path) -> list[Cell]:
    """Read the runs of a plan, each once, in its order. Raises as `read_blocks`."""
    return list({cell.name: cell for block in reversed(read_blocks(path)) for cell in reversed(block)}.values())[::-1]


def read_blocks(path: Path) -> list[list[Cell]]:
    """Read the runs of each [[runs]] of a plan. Raises `ValueError` for a name that the plan does not explain."""
    plan = tomllib.loads(path.read_text(encoding="utf-8"))
    blocks = []
    for block in plan["runs"]:
        if unknown := set(block) - KEYS:
            raise ValueError(f"{path}: [[runs]] has {', '.join(sorted(unknown))}; it takes {', '.join(sorted(KEYS))}")
        chosen = itertools.product(*(block[key] for key in ("seeds", "tasks", "models", "methods")))
        blocks.append(
            [_make_cell(path, plan, block, (task, model, method, seed)) for seed, task, model, method in chosen]
        )
    return blocks


def _make_cell(
    path: Path, plan: Mapping[str, Any], block: Mapping[str, Any], names: tuple[str, str, str, int]
) -> Cell:
    task, model, method, seed = names
    for table, name in (("tasks", task), ("methods", method)):
        if name not in plan[table]:
            raise ValueError(f"{path}: [{table}.{name}] is missing, which [[runs]] asks for")
    about, how = plan["tasks"][task], plan["methods"][method]
    target = about.get(model, {}).get("target", about.get("target"))
    of_both = how.get(task, {}).get(model, {})
    return Cell(
        task=task,
        model=model,
        method=method,
        seed=seed,
        preset=about["preset"],
        settings=tuple(
            setting
            for table in (about, about.get(model, {}), how, how.get(model, {}), how.get(task, {}), of_both)
            for setting in table.get("settings", [])
        ),
        target=Target(**target) if target else None,
        processor_seconds=block.get("processor_seconds"),
        until_target=block.get("until_target", False),
        every=how.get("every", block.get("every", 5)),
    )
