"""What the benchmarks have in common: costs of phases, medians with their ranges, and the machine they are of."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Cost:
    """Seconds that some work took."""

    processor: float
    """Of this process, on all its processors."""
    wall: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.processor + other.processor, self.wall + other.wall)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.processor - other.processor, self.wall - other.wall)


def now() -> Cost:
    """Read both clocks, once the work that a GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Cost(time.process_time(), time.perf_counter())


def measure(work: Callable[[], object]) -> Cost:
    """Give the seconds that some work takes."""
    started = now()
    work()
    return now() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give the median, the lowest and the highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def show_spread(values: Mapping[str, float], digits: int = 2) -> str:
    """Write a `spread` for people."""
    return f"{values['median']:.{digits}f} ({values['lowest']:.{digits}f} to {values['highest']:.{digits}f})"


COLUMNS = ("", "sample ms/image", "train ms/image", "times rlcm's")


def summarise(rounds: Sequence[Mapping[str, Mapping[str, Cost]]], images: int, clock: str) -> dict[str, Any]:
    """Compare two sides, of which each round has the costs by phase.

    Gives seconds an image by side and phase, and `ratio`: the second side's to the first's, of sampling and training.
    `clock` is `processor` or `wall`.
    """

    def seconds(costs: Mapping[str, Cost], *phases: str) -> float:
        return sum(getattr(costs[phase], clock) for phase in phases)

    report: dict[str, Any] = {
        side: {
            phase: spread([seconds(one[side], phase) / images for one in rounds])
            for phase in ("sample", "score", "train")
        }
        for side in rounds[0]
    }
    ours, theirs = rounds[0]
    ratios = [seconds(one[theirs], "sample", "train") / seconds(one[ours], "sample", "train") for one in rounds]
    return {**report, "ratio": spread(ratios)}


def table_rows(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    """Give the table's rows of one comparison: milliseconds an image of both sides, and the ratio."""

    def row(side: str, last: str) -> list[str]:
        costs = [found[side][phase] for phase in ("sample", "train")]
        shown = [show_spread({key: 1000 * value for key, value in cost.items()}, 1) for cost in costs]
        return [f"{name}: {side}", *shown, last]

    ours, theirs = (side for side in found if not side.endswith("ratio"))
    return [row(ours, ""), row(theirs, show_spread(found["ratio"]))]


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Say when and on what a figure was measured."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns that are as wide as they need to be, the first to the left."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells))


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report, where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
