"""The stored results of runs, a JSON file each, and what they say: rewards, costs to a target, values on the way."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COSTS = ("processor", "queries", "forwards")


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
class Costs:
    """What the iterations before a checkpoint cost, evaluations not included."""

    processor: float
    """Seconds of sampling, scoring and training."""
    queries: int
    """Images that were drawn and scored."""
    forwards: int
    """Forwards of the model, a backward pass as two."""


def results_folder(plan: Path) -> Path:
    """Return the folder of a plan's results."""
    return plan.parent / "results" / plan.stem


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Read all results of a folder, in the order of their names."""
    return [read_result(file) for file in sorted(folder.glob("*.json"))]


def read_result(file: Path) -> dict[str, Any]:
    """Read the result of a run."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def write_result(file: Path, found: Mapping[str, Any]) -> None:
    """Write a result whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(_rounded(found)) + "\n", encoding="utf-8")
    part.replace(file)


def reward_at(result: Mapping[str, Any], point: Mapping[str, Any], images: str = "all") -> float:
    """Return the reward that a run was trained for, of the fixed images of an evaluation.

    `images`: `all`, or those of `training_prompts` or `held_out_prompts`.
    """
    return sum(weight * point[images][name] for name, weight in result["reward"].items())


def final_reward(result: Mapping[str, Any]) -> float:
    """Return the trained reward of all fixed images at the end; −∞ of a run that failed."""
    return float("-inf") if "failed" in result else reward_at(result, result["points"][-1])


def reward_after(result: Mapping[str, Any], cost: str, amount: float) -> float:
    """Return the trained reward after an amount of one of `COSTS`, on the line between two evaluations.

    The last one's where the run had not so much.
    """
    for before, after in itertools.pairwise(result["points"]):
        if before[cost] <= amount <= after[cost]:
            share = (amount - before[cost]) / (after[cost] - before[cost])
            return (1 - share) * reward_at(result, before) + share * reward_at(result, after)
    return reward_at(result, result["points"][-1])


def find_crossing(result: Mapping[str, Any]) -> Costs | None:
    """Return what it cost to reach the run's target, between two evaluations by a straight line; None: not reached.

    The share that is recognised has to be there at the evaluation that ends the interval.
    """
    if result["target"] is None:
        return None
    target, points = Target(**result["target"]), result["points"]
    first = points[0]["all"][target.measure]
    bound = target.bound(first)
    for before, after in itertools.pairwise(points):
        low, high = (point["all"][target.measure] - bound for point in (before, after))
        if bound < first:
            low, high = -low, -high
        if high < 0 or after["all"]["recognised"] < target.recognised:
            continue
        share = 1.0 if low >= 0 else -low / (high - low)
        return Costs(*(before[name] + share * (after[name] - before[name]) for name in COSTS))
    return None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
