"""The stored results of runs: a JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    found: Mapping[str, Any]

    @property
    def reward(self) -> float:
        """The trained reward of the fixed images at the end, −∞ of a run that failed."""
        if self.found.get("failed"):
            return float("-inf")
        return reward_of(self.found["points"][-1]["all"], self.found["reward"])


def reward_of(measures: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Add up measures by the weights of a trained reward."""
    return sum(weight * measures[name] for name, weight in weights.items())


def find_results(folder: Path, names: Sequence[str]) -> list[Result]:
    """Read the results of runs from a folder; none where one of them is missing."""
    files = [folder / f"{name}.json" for name in names]
    return [read_result(file) for file in files] if all(file.exists() for file in files) else []


def read_result(file: Path) -> Result:
    """Read the result of a run."""
    return Result(json.loads(file.read_text(encoding="utf-8")))


def write_result(file: Path, found: Mapping[str, Any]) -> None:
    """Write a result whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(_rounded(found)) + "\n", encoding="utf-8")
    part.replace(file)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
