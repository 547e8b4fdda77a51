"""The table of a plan that asks for a price: costs to a target, and what was reached."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from examples.benchmark.results import find_crossing

HEADER = [
    "task",
    "model",
    "method",
    "seeds",
    "processor s to the target",
    "queries to it",
    "measure",
    "recognised, %",
    "after processor s",
]
KEY = ("task", "model", "method")


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
