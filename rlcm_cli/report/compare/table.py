"""The numbers of a comparison as plain values, and the folder that they are written into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.report.compare.comparison import Comparison, Method
from rlcm_cli.report.compare.curves import find_crossing, price_at
from rlcm_cli.report.compare.evaluations import FirstAndLast
from rlcm_cli.store.atomic import replace_bytes

FILES = ("compare.json", "compare.png", "samples.png")
KIND = "comparison"


def tabulate(comparison: Comparison) -> dict[str, Any]:
    """Return all numbers of the comparison as plain values; of several seeds mean, lowest and highest.

    `of_each_seed` is what a run has cost where its own curve first reaches the target, None where it never does.
    `price` of a method is the mean of these, None where a seed never reaches it: a mean of the others would flatter.
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
        "smoothed_over_iterations": comparison.window,
        "target": comparison.target,
        "slowest": slowest,
        "costs": list(comparison.costs),
        "methods": rows,
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
    replace_bytes(path, (json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def _tabulate_method(method: Method, comparison: Comparison) -> dict[str, Any]:
    target = comparison.target
    crossings = [find_crossing(curve, target) for curve in method.curves]

    return {
        "label": method.label,
        "runs": [run.name for run in method.runs],
        "seeds": [run.config.seed for run in method.runs],
        "iterations": len(method.mean.rewards),
        "windows": [levels.window for levels in method.levels],
        "first": _spread([levels.first for levels in method.levels]),
        "best": _spread([levels.best for levels in method.levels]),
        "final": _spread([levels.final for levels in method.levels]),
        "evaluated": _tabulate_evaluations(method.evaluations),
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
    return {
        "price": fmean(reached) if len(reached) == len(of_each_seed) else None,
        "of_each_seed": list(of_each_seed),
    }


def _tabulate_evaluations(evaluations: Sequence[FirstAndLast | None]) -> dict[str, Any] | None:
    known = [found for found in evaluations if found is not None]
    if len(known) < len(evaluations):
        return None
    return {
        "checkpoints": [list(found.checkpoints) for found in known],
        "held_out_seeds": _tabulate_before_after([found.seeds for found in known]),
        "held_out_prompts": _tabulate_before_after([found.prompts for found in known]),
    }


def _tabulate_before_after(means: Sequence[tuple[float, float] | None]) -> dict[str, Any] | None:
    known = [of_seed for of_seed in means if of_seed is not None]
    if len(known) < len(means):
        return None
    return {when: _spread([of_seed[index] for of_seed in known]) for index, when in enumerate(("before", "after"))}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "lowest": min(values), "highest": max(values)}
