"""The numbers of a comparison as plain values, and the folder that they are written into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlcm_cli.core.seed_interval import CONFIDENCE, mean_interval
from rlcm_cli.errors import ConfigError
from rlcm_cli.report.compare.comparison import Comparison, Method
from rlcm_cli.report.compare.curves import find_crossing, price_at
from rlcm_cli.report.compare.evaluations import TOTAL, HeldOutLevels
from rlcm_cli.report.private import name_reward
from rlcm_cli.store.atomic import replace_bytes

FILES = ("compare.json", "compare.png", "samples.png")
KIND = "comparison"


def tabulate(comparison: Comparison) -> dict[str, Any]:
    """Return all numbers of the comparison as plain values.

    A value of several seeds is a `spread`: `of_each_seed`, `mean`, `lowest`, `highest`, and `interval`, of 95 % by
    Student's t, None for one seed. It is None where a seed lacks the value.

    `price` is the same for what each run has cost where its own curve first reaches the target; `of_each_seed` has
    None for a run that never does, and then `price` and `interval` are None: a mean of the others would flatter.
    `speed_up` is over `slowest`, the method with the highest price. `total` is the cost of the whole training.
    """
    rows = [_tabulate_method(method, comparison) for method in comparison.methods]
    slowest = {}
    for cost in comparison.costs:
        prices = [row["reach"][cost]["price"] for row in rows]
        known = [price for price in prices if price is not None]
        slowest[cost] = rows[prices.index(max(known))]["label"] if known else None
        for row, price in zip(rows, prices, strict=True):
            row["reach"][cost]["speed_up"] = max(known) / price if price else None
    return {
        "kind": KIND,
        "reward": comparison.reward,
        "held_out_reward": comparison.held_out,
        "smoothed_over_iterations": comparison.window,
        "target": comparison.target,
        "target_given": comparison.target_given,
        "slowest": slowest,
        "costs": list(comparison.costs),
        "confidence": CONFIDENCE,
        "methods": rows,
        "settings": [{"setting": row.key, "values": dict(row.values)} for row in comparison.settings],
        "notes": list(comparison.notes),
    }


def check_folder(folder: Path) -> None:
    """Raise `ConfigError` where writing a comparison into a folder would replace a file of something else."""
    table = folder / FILES[0]
    try:
        ours = json.loads(table.read_text(encoding="utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        ours = False
    taken = [folder / name for name in FILES if (folder / name).exists()]
    if (folder.exists() and not folder.is_dir()) or (taken and not ours):
        raise ConfigError(
            f"{taken[0] if taken else folder}: already exists and is not a file of a comparison; choose another --out"
        )


def write_table(table: Mapping[str, Any], folder: Path) -> Path:
    """Write the numbers of a comparison into its folder."""
    path = folder / FILES[0]
    replace_bytes(path, write_json(table).encode())
    return path


def write_json(table: Mapping[str, Any]) -> str:
    """Write the numbers of a comparison as JSON."""
    return json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _tabulate_method(method: Method, comparison: Comparison) -> dict[str, Any]:
    target = comparison.target
    crossings = [find_crossing(curve, target) for curve in method.curves]

    return {
        "label": method.label,
        "runs": [run.name for run in method.runs],
        "seeds": [run.config.seed for run in method.runs],
        "iterations": [len(curve.rewards) for curve in method.curves],
        "windows": [levels.window for levels in method.levels],
        "first": _spread([levels.first for levels in method.levels]),
        "best": _spread([levels.best for levels in method.levels]),
        "final": _spread([levels.final for levels in method.levels]),
        "held_out": _tabulate_held_out(method.held_out),
        "reach": {
            cost: _tabulate_price(
                [
                    None if at is None else price_at(curve.prices[cost], at)
                    for curve, at in zip(method.curves, crossings, strict=True)
                ]
            )
            for cost in comparison.costs
        },
        "total": {cost: _spread([curve.prices[cost][-1] for curve in method.curves]) for cost in comparison.costs},
    }


def _tabulate_price(of_each_seed: Sequence[float | None]) -> dict[str, Any]:
    reached = [price for price in of_each_seed if price is not None]
    every = len(reached) == len(of_each_seed)
    return {
        "price": fmean(reached) if every else None,
        "interval": _interval(reached) if every else None,
        "reached": len(reached),
        "of_each_seed": list(of_each_seed),
    }


def _tabulate_held_out(levels: Sequence[HeldOutLevels | None]) -> dict[str, Any] | None:
    """Return what a method reached on fixed images, as far as all of its seeds have it; the total's name is empty.

    Rewards have their display names, which tell no folder and no address.
    """
    known = [found for found in levels if found is not None]
    if len(known) < len(levels):
        return None
    shared = [key for key in known[0].means if all(key in found.means for found in known)]
    names = name_apart(dict.fromkeys(reward for reward, _ in shared))
    rewards: dict[str, Any] = {}
    for reward, part in shared:
        means = [found.means[reward, part] for found in known]
        best = [reached.best for reached in means]
        rewards.setdefault(names[reward], {})[part] = {
            "first": _spread([reached.first for reached in means]),
            "best": None if None in best else _spread([value for value in best if value is not None]),
            "final": _spread([reached.final for reached in means]),
            "change": _spread([reached.change for reached in means]),
        }
    return {
        "checkpoints": [dict(zip(("first", "best", "final"), found.checkpoints, strict=True)) for found in known],
        "rewards": rewards,
    }


def name_apart(rewards: Iterable[str]) -> dict[str, str]:
    """Return reward → display name; those with the same name are numbered."""
    names: dict[str, str] = {}
    for reward in rewards:
        plain = name_reward(reward) if reward != TOTAL else TOTAL
        taken = sum(name == plain or name.startswith(f"{plain} (") for name in names.values() if name)
        names[reward] = f"{plain} ({taken + 1})" if taken and plain else plain
    return names


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": fmean(values),
        "lowest": min(values),
        "highest": max(values),
        "interval": _interval(values),
        "of_each_seed": list(values),
    }


def _interval(values: Sequence[float]) -> list[float] | None:
    found = mean_interval(values)
    return None if found is None else list(found)
