"""What the results of a plan say: costs to a target, and what was reached; tables in Markdown from stored results.

python -m examples.benchmark.tables examples/benchmark/price.toml
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.benchmark.measure import Costs
from examples.benchmark.plan import Target, read_blocks

KEY = ("task", "model", "method")


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
        names = ("processor", "queries", "forwards")
        return Costs(*(before[name] + share * (after[name] - before[name]) for name in names))
    return None


def group_results(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    """Group results by task, model and method; the seeds of a group ascend."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda one: one["seed"]):
        groups.setdefault(tuple(result[name] for name in KEY), []).append(result)
    return groups


def show_spread(values: Sequence[float | None], digits: int = 0) -> str:
    """Write the median with the lowest and the highest; a run that has none counts as above all others."""
    reached = sorted(value for value in values if value is not None)
    if not reached:
        return "never" if len(values) == 1 else f"never (0 of {len(values)})"
    ordered = [*reached, *[float("inf")] * (len(values) - len(reached))]
    middle = statistics.median(ordered)
    shown = "never" if middle == float("inf") else f"{middle:.{digits}f}"
    if len(values) == 1:
        return shown
    few = "" if len(reached) == len(values) else f", {len(reached)} of {len(values)}"
    return f"{shown} ({reached[0]:.{digits}f} to {reached[-1]:.{digits}f}{few})"


def price_rows(results: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> list[list[str]]:
    """Lay out a row for each task, model and method: costs to the target, and the last evaluation.

    `words`: what to call a method, where not by its name; rows are in this order, and others last.
    """
    rows, order = [], list(words)

    def place(entry: tuple[tuple[str, ...], object]) -> tuple[str, str, int, str]:
        task, model, method = entry[0]
        return task, model, order.index(method) if method in words else len(order), method

    for (task, model, method), group in sorted(group_results(results).items(), key=place):
        crossings = [find_crossing(one) for one in group]
        first, last = ([one["points"][number] for one in group] for number in (0, -1))
        measure = group[0]["target"]["measure"]
        ends = [
            [point["all"][name] for point in points] for name in (measure, "recognised") for points in (first, last)
        ]
        rows.append(
            [
                task,
                model,
                words.get(method, method),
                ", ".join(str(one["seed"]) for one in group),
                show_spread([None if one is None else one.processor for one in crossings]),
                show_spread([None if one is None else one.queries for one in crossings]),
                f"{statistics.median(ends[0]):.2f} → {show_spread(ends[1], 2)}",
                f"{100 * statistics.median(ends[2]):.1f} → {show_spread([100 * share for share in ends[3]], 1)}",
                show_spread([point["processor"] for point in last]),
            ]
        )
    return rows


def main() -> None:
    """Print a table of costs for each [[runs]] of the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    arguments = parser.parse_args()
    methods = tomllib.loads(arguments.plan.read_text(encoding="utf-8"))["methods"]
    words = {name: about["about"] for name, about in methods.items() if "about" in about}
    folder = arguments.plan.parent / "results" / arguments.plan.stem
    header = ["task", "model", "method", "seeds", "processor s to the target", "queries to it", "measure"]
    header += ["recognised, %", "after processor s"]
    for block in read_blocks(arguments.plan):
        files = [folder / f"{cell.name}.json" for cell in block]
        results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        for row in price_rows(results, words):
            print("| " + " | ".join(row) + " |")
        print()


if __name__ == "__main__":
    main()
