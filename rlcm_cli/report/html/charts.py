"""The charts of a report: which numbers of a run are shown, beside which others, and in which colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from rlcm_cli.report.html.scores import BINS, Histogram
from rlcm_cli.report.html.specs import (
    HOVER_POINTS,
    Spec,
    encode_iterations,
    encode_rewards,
    frame,
    hover_layer,
    line_spec,
    point_layers,
    shorten,
)
from rlcm_cli.report.private import name_reward
from rlcm_cli.report.run.bands import FREE, Range, band
from rlcm_cli.report.run.data import Evidence
from rlcm_cli.report.run.goals import find_goals
from rlcm_cli.report.run.summary import PHASES, estimate_part
from rlcm_cli.store.evaluations import Evaluation

MOST_COLUMNS = 72
RUN_COLOURS = 7

TRAINED, MONITORED = ("trained on", "--trained"), ("monitored, not trained on", "--monitored")

UPDATE_METRICS = {
    "ratio": ("Probability ratio", "Mean of π / π_old over the actions; 1 where an iteration is one optimizer step."),
    "approx_kl": ("Approximate KL", "From the policy that drew the images, over an iteration's updates."),
    "kl_to_base": ("KL to the base model", "How far the policy has moved from where it started."),
    "clip_fraction": ("Clip fraction", "Share of the actions whose ratio is outside the clip range."),
    "grad_norm": ("Gradient norm", "Before it is clipped."),
    "learning_rate": ("Learning rate", ""),
    "loss": ("Loss", "What an optimizer step descends; its level has no meaning."),
    "ratio_drift": ("Ratio drift", "Largest |ratio − 1| before the first update: rounding alone."),
    "flat_prompts": ("Prompts with identical rewards", "They teach nothing in that iteration."),
}
NOT_CHARTED = (
    "format_version", "iteration", "checkpoint", "finished_at", "reward_mean", "reward_std", "reward_best", "samples",
    "updates", "forwards", "cpu_seconds", *PHASES,
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A line of a chart's legend."""

    text: str
    colour: str
    """A CSS colour."""
    mark: str = "line"
    """line, dots (a dotted line), band or point."""


@dataclass(frozen=True)
class Chart:
    """A chart with what is written around it."""

    title: str
    note: str
    spec: Spec
    keys: Sequence[Key] = field(default_factory=list)


def chart_rewards(evidence: Evidence, most_points: int) -> list[Chart]:
    """Chart each reward over the iterations: what is trained for, its components, then what is only monitored."""
    rows, trained, tasks = thin(evidence.metrics, most_points), evidence.trained(), evidence.run.contender.tasks
    charts: list[Chart] = []
    # Only of one task whose rewards are summed as they are has the sum a unit.
    if rows and len(tasks) == 1 and len(trained) > 1 and evidence.run.config["combine"] == "sum":
        total = [(row["checkpoint"], row["reward_mean"], row["reward_std"], row.get("reward_best")) for row in rows]
        points = [point for goal in find_goals(evidence) for point in _evaluated(evidence, goal.values)]
        charts.append(_chart_reward("Weighted sum of the rewards", *TRAINED, total, points))
    is_goal = list(tasks.values()) == [{trained[0]: 1.0}]
    for reward in evidence.rewards():
        bests = is_goal and reward in trained  # the best of a sum is none of a part of it
        values = [
            (
                row["checkpoint"],
                mean,
                row.get("reward_stds", {}).get(reward),
                row.get("reward_best") if bests else None,
            )
            for row in rows
            if (mean := mean_of(row, reward)) is not None
        ]
        if values:
            note, colour = TRAINED if reward in trained else MONITORED
            points = _evaluated(evidence, partial(_values_of, reward))
            bounds = evidence.run.bounds.get(reward, FREE)
            charts.append(_chart_reward(name_reward(reward), note, colour, values, points, bounds))
    return charts


def chart_updates(evidence: Evidence, most_points: int) -> tuple[list[Chart], list[tuple[str, float]]]:
    """Chart what the updates measured; of a value that never changes give its name and the value instead."""
    rows = thin(evidence.metrics, most_points)
    names = [name for row in rows for name, value in row.items() if _is_number(value) and name not in NOT_CHARTED]
    charts, constant = [], []
    for name in [*UPDATE_METRICS, *dict.fromkeys(name for name in names if name not in UPDATE_METRICS)]:
        values = [(row["checkpoint"], row[name]) for row in rows if _is_number(row.get(name))]
        title, note = UPDATE_METRICS.get(name, (name.replace("_", " ").capitalize(), ""))
        if values and all(value == values[0][1] for _, value in values):
            constant.append((title, float(values[0][1])))
        elif values:
            charts.append(Chart(title, note, line_spec(title, values)))
    return charts, constant


def chart_costs(evidence: Evidence, most_points: int) -> list[Chart]:
    """Chart images a second and the seconds of each phase, where they were recorded."""
    rows = thin(evidence.metrics, most_points)
    charts: list[Chart] = []
    known = [phase for phase in PHASES if any(_is_number(row.get(phase)) for row in rows)]
    if not known:
        return charts
    timed = [(row, sum(float(row.get(phase) or 0) for phase in known)) for row in rows]
    speed = [
        (row["checkpoint"], row["samples"] / all_) for row, all_ in timed if all_ and _is_number(row.get("samples"))
    ]
    if speed and len(known) == len(PHASES):
        charts.append(
            Chart("Throughput", "Images per second, drawn, scored and trained on.", line_spec("Throughput", speed))
        )
    colours = dict(zip(PHASES, ("--run-1", "--run-3", "--run-2"), strict=True))
    values = [
        {"i": row["checkpoint"], "v": shorten(row[phase]), "phase": phase.removesuffix("_seconds")}
        for phase in known
        for row in rows
        if _is_number(row.get(phase))
    ]
    names = [phase.removesuffix("_seconds") for phase in known]
    spec = frame("Seconds of each phase of an iteration, stacked", values) | {
        "mark": {"type": "area", "opacity": 0.8, "aria": False},
        "encoding": {
            "x": encode_iterations(),
            "y": {"field": "v", "type": "quantitative", "stack": "zero", "title": None},
            "color": {
                "field": "phase", "type": "nominal", "sort": names, "legend": None,
                "scale": {"domain": names, "range": [f"var({colours[phase]})" for phase in known]},
            },
            "order": {"field": "phase", "sort": "ascending"},
        },
    }  # fmt: skip
    keys = [Key(name, f"var({colours[phase]})", "band") for name, phase in zip(names, known, strict=True)]
    return [*charts, Chart("Time per phase", "Seconds per iteration, stacked.", spec, keys)]


def chart_spread(histogram: Histogram, colour: str) -> Chart:
    """Chart how a reward's values are spread in all iterations: the darker, the larger the share of the images."""
    columns = min(MOST_COLUMNS, len(histogram.iterations))
    edges = [round(index * len(histogram.iterations) / columns) for index in range(columns + 1)]
    values = []
    for start, stop in itertools.pairwise(edges):
        counts = [sum(column) for column in zip(*histogram.counts[start:stop], strict=True)]
        largest = max(counts)
        for number, count in enumerate(counts):
            if count:
                low = histogram.start + number * histogram.width
                values.append(
                    {
                        "from": histogram.iterations[start] - 0.5,
                        "to": histogram.iterations[stop - 1] + 0.5,
                        "i": histogram.iterations[start],
                        "low": shorten(low),
                        "high": shorten(low + histogram.width),
                        "share": shorten(count / sum(counts)),
                        "shade": shorten(0.08 + 0.92 * count / largest),
                    }
                )
    spec = frame("Share of the images by reward and iteration", values) | {
        "height": 220,
        "mark": {"type": "rect", "color": f"var({colour})", "aria": False, "strokeWidth": 0},
        "encoding": {
            "x": {**encode_iterations("from"), "scale": {"nice": False}},
            "x2": {"field": "to"},
            "y": {"field": "low", "type": "quantitative", "title": None, "scale": {"zero": False}},
            "y2": {"field": "high"},
            "opacity": {"field": "shade", "type": "quantitative", "scale": None},
            "tooltip": [
                {"field": "i", "type": "quantitative", "title": "iteration"},
                {"field": "low", "type": "quantitative", "title": "reward from"},
                {"field": "high", "type": "quantitative", "title": "to"},
                {"field": "share", "type": "quantitative", "title": "share of images", "format": ".0%"},
            ],
        },
    }
    return Chart(
        "All iterations", "One column per iteration (per several in long runs); dark: where most images are.", spec
    )


def chart_iteration(histogram: Histogram, colour: str) -> Chart:
    """Chart the histogram of one iteration, whose counts the report's script puts into `bars`."""
    most, low = max(max(counts) for counts in histogram.counts), shorten(histogram.start)
    spec = frame("Images by reward in the chosen iteration", []) | {
        "height": 220,
        "data": {"name": "bars", "values": []},
        "mark": {"type": "rect", "color": f"var({colour})", "stroke": "var(--ground)", "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "low", "type": "quantitative", "title": "reward", "axis": {"tickCount": 6},
                "scale": {"domain": [low, shorten(histogram.start + BINS * histogram.width)], "nice": False},
            },
            "x2": {"field": "high"},
            "y": {
                "field": "count", "type": "quantitative", "title": "images", "scale": {"domain": [0, most]},
                "axis": {"tickMinStep": 1, "tickCount": 5},
            },
            "y2": {"datum": 0},
            "tooltip": [
                {"field": "low", "type": "quantitative", "title": "reward from"},
                {"field": "high", "type": "quantitative", "title": "to"},
                {"field": "count", "type": "quantitative", "title": "images"},
            ],
        },
    }  # fmt: skip
    return Chart("One iteration", "Number of images by reward.", spec)


@dataclass(frozen=True)
class Line:
    """A run in a chart of several: its values are smoothed by a trailing mean."""

    run: str
    method: int
    values: Sequence[tuple[int, float]]


def chart_runs(title: str, note: str, lines: Sequence[Line], keys: Sequence[Key]) -> Chart:
    """Lay the curves of several runs over each other."""
    values = [
        {"i": iteration, "v": shorten(value), "run": line.run, "c": line.method}
        for line in lines
        for iteration, value in line.values
    ]
    methods = sorted({line.method for line in lines})
    spec = frame(f"{title}, a line a run", values) | {
        "height": 300,
        "mark": {"type": "line", "strokeWidth": 1.6, "strokeJoin": "round", "tooltip": True},
        "encoding": {
            "x": encode_iterations(),
            "y": encode_rewards(),
            "detail": {"field": "run"},
            "color": {
                "field": "c", "type": "nominal", "legend": None,
                "scale": {"domain": methods, "range": [method_colour(method) for method in methods]},
            },
            "strokeDash": {
                "field": "c", "type": "nominal", "legend": None,
                "scale": {"domain": methods, "range": [[4, 3] if m >= RUN_COLOURS else [1, 0] for m in methods]},
            },
            "tooltip": [{"field": "run", "title": "run"}],
        },
    }  # fmt: skip
    return Chart(title, note, spec, keys)


def method_colour(method: int) -> str:
    """Give the CSS colour of a method; there are seven, then they come again on dashed lines."""
    return f"var(--run-{method % RUN_COLOURS + 1})"


def mean_of(row: Mapping[str, Any], reward: str) -> float | None:
    """Give the mean of a reward in an iteration, trained on or monitored; None where it was not scored."""
    mean = row.get("rewards", {}).get(reward, row.get("monitored", {}).get(reward))
    return None if mean is None else float(mean)


def thin(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Give at most so many rows, each the mean of as many neighbours; of `reward_best` the largest."""
    if len(rows) <= most:
        return list(rows)
    edges = [round(index * len(rows) / most) for index in range(most + 1)]
    return [_merge(rows[start:stop]) for start, stop in itertools.pairwise(edges)]


def _merge(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name, value in rows[-1].items():
        if isinstance(value, Mapping):
            merged[name] = _merge([row[name] for row in rows if isinstance(row.get(name), Mapping)])
        elif _is_number(value) and name not in ("iteration", "checkpoint"):
            known = [row[name] for row in rows if _is_number(row.get(name))]
            merged[name] = max(known) if name == "reward_best" else sum(known) / len(known)
        else:
            merged[name] = value
    return merged


def _values_of(reward: str, evaluation: Evaluation) -> Tensor | None:
    return evaluation.rewards.get(reward)


def _evaluated(evidence: Evidence, values_of: Callable[[Evaluation], Tensor | None]) -> list[dict[str, Any]]:
    """Return the means of the evaluations with their standard errors, for training and for held-out prompts."""
    points = []
    for evaluation in evidence.evaluations:
        values = values_of(evaluation)
        for held_out in (False, True):
            found = None if values is None else estimate_part(evaluation, values, held_out=held_out)
            if found:
                error = found.error if math.isfinite(found.error) else 0.0
                points.append(
                    {
                        "i": evaluation.checkpoint,
                        "v": shorten(found.mean),
                        "low": shorten(found.mean - error),
                        "high": shorten(found.mean + error),
                        "part": "held-out prompts" if held_out else "held-out seeds",
                    }
                )
    return points


def _chart_reward(
    title: str,
    note: str,
    colour: str,
    values: Sequence[tuple[int, float, float | None, float | None]],
    points: Sequence[Mapping[str, Any]],
    bounds: Range = FREE,
) -> Chart:
    every = max(1, len(values) // HOVER_POINTS)
    rows: list[dict[str, Any]] = []
    for number, (iteration, mean, spread, best) in enumerate(values):
        row: dict[str, Any] = {"i": iteration, "v": shorten(mean)}
        if spread is not None:
            low, high = band(mean, spread, bounds)
            row |= {"low": shorten(low), "high": shorten(high), "std": shorten(spread)}
        if best is not None:
            row["best"] = shorten(best)
        rows.append(row | ({"h": 1} if number % every == 0 else {}))
    spreads, bests = any("std" in row for row in rows), any("best" in row for row in rows)
    css = f"var({colour})"
    x, layers, keys = encode_iterations(), [], [Key("mean", css)]
    if spreads:
        keys.append(Key("± one standard deviation over images", css, "band"))
        layers.append(
            {
                "mark": {"type": "area", "color": css, "opacity": 0.18, "aria": False},
                "encoding": {"x": x, "y": encode_rewards("low"), "y2": {"field": "high"}},
            }
        )
    if bests:
        keys.append(Key("best image", css, "dots"))
        layers.append(
            {
                "mark": {"type": "line", "color": css, "strokeWidth": 1, "strokeDash": [1.5, 2.5], "aria": False},
                "encoding": {"x": x, "y": encode_rewards("best")},
            }
        )
    layers.append(
        {
            "mark": {"type": "line", "color": css, "strokeWidth": 1.8, "strokeJoin": "round"},
            "encoding": {"x": x, "y": encode_rewards()},
        }
    )
    for part, fill in (("held-out seeds", "var(--text)"), ("held-out prompts", "var(--ground)")):
        of_part = [point for point in points if point["part"] == part]
        if of_part:
            keys.append(Key(part, fill, "point"))
            layers += point_layers(of_part, fill, x)
    fields = [
        ("i", "iteration"),
        ("v", "mean"),
        *([("std", "std")] if spreads else []),
        *([("best", "best")] if bests else []),
    ]
    layers.append(hover_layer(fields))
    return Chart(title, note, frame(f"{title} over the iterations", rows) | {"layer": layers}, keys)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
