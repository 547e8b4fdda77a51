"""The charts of a report: which numbers of a run are shown, with which others, and in which colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from rlcm_cli.objectives import Metric, find_objective
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
    round_digits,
)
from rlcm_cli.report.private import name_reward
from rlcm_cli.report.run.bands import FREE, Range, band
from rlcm_cli.report.run.data import RunData
from rlcm_cli.report.run.goals import find_goals
from rlcm_cli.runs.held_out import estimate_images
from rlcm_cli.store.evaluations import Evaluation
from rlcm_cli.store.metrics import PHASES, IterationMetrics

MOST_COLUMNS = 72
RUN_COLOURS = 7

TRAINED, MONITORED = ("trained on", "--trained"), ("monitored, not trained on", "--monitored")

LEARNING_CHARTS = (
    Metric("kl_to_base", "KL to the base model", "How far the policy has moved from the model it started from."),
    Metric("grad_norm", "Gradient norm", "Before clipping."),
    Metric("learning_rate", "Learning rate"),
    Metric("flat_prompts", "Prompts with identical rewards", "They teach nothing in that iteration."),
    Metric("last_step_reward", "Reward of the last step", "Of the images that rewards are back-propagated through."),
    Metric("teacher_distance", "Distance from the teacher", "Of the predicted images, mean squared, as latents."),
    Metric("last_teacher_distance", "Distance from the teacher, last calls", "Those that rewards go back through."),
    Metric("matching_distance", "Difference of the two scores", "As latents; distribution matching makes it small."),
    Metric("fake_score_loss", "Loss of the second score", "Of denoising the policy's images."),
    Metric("pretraining_loss", "Pretraining loss", "On the real images."),
    Metric("loss_scale_backoffs", "Loss-scale reductions", "Each drops an update that overflowed in 16 bits."),
)
"""What is charted of the updates whatever the objective, whose own metrics come first."""
NOT_CHARTED = ("updates", "samples", "forwards", "refreshed")
PHASE_COLOURS = {"sample": "--run-1", "score": "--run-3", "train": "--run-2"}


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


Groups = Sequence[Sequence[IterationMetrics]]
"""Iterations in a row that share a point of a chart."""
Read = Callable[[IterationMetrics], float | None]


def group_rows(rows: Sequence[IterationMetrics], most: int) -> Groups:
    """Share iterations between at most so many points, of as many neighbours each."""
    points = min(most, len(rows))
    edges = [round(index * len(rows) / max(1, points)) for index in range(points + 1)]
    return [rows[start:stop] for start, stop in itertools.pairwise(edges)]


def read_group(
    group: Sequence[IterationMetrics], read: Read, join: Callable[[Sequence[float]], float] = fmean
) -> float | None:
    """Return the mean of a number over neighbouring iterations, or what else `join` makes of it.

    None where no iteration has it.
    """
    known = [value for row in group if (value := read(row)) is not None and math.isfinite(value)]
    return join(known) if known else None


def trace(groups: Groups, read: Read) -> list[tuple[int, float]]:
    """Return the curve of a number: (iteration, value) of each point that has it."""
    return [(group[-1].checkpoint, value) for group in groups if (value := read_group(group, read)) is not None]


def chart_rewards(data: RunData, most_points: int) -> list[Chart]:
    """Chart each reward over the iterations: what is trained for, its components, then what is only monitored."""
    groups, tasks = group_rows(data.metrics, most_points), data.config.joint_tasks()
    trained = data.run.trained
    charts: list[Chart] = []
    # The sum has a unit only where a single task sums its rewards as they are.
    if groups and len(tasks) == 1 and len(trained) > 1 and data.config.combine == "sum":
        total = _reward_points(groups, lambda row: row.reward_mean, lambda row: row.reward_std, best=True)
        points = [point for goal in find_goals(data) for point in _evaluated(data, goal.values)]
        charts.append(_chart_reward("Weighted sum of the rewards", *TRAINED, total, points))
    is_goal = list(data.run.tasks.values()) == [{trained[0]: 1.0}]
    for reward in data.rewards():
        best = is_goal and reward in trained  # the best image by a sum is not the best by each of its parts
        values = _reward_points(groups, partial(_mean_of, reward), partial(_spread_of, reward), best=best)
        if values:
            note, colour = TRAINED if reward in trained else MONITORED
            points = _evaluated(data, partial(_values_of, reward))
            bounds = data.run.run.reward_bounds().get(reward, FREE)
            charts.append(_chart_reward(name_reward(reward), note, colour, values, points, bounds))
    return charts


def list_update_metrics(data: RunData) -> list[Metric]:
    """List what a run measured of its updates: the objective's own metrics, then those of all, then others."""
    known = [*find_objective(data.config).metrics, *LEARNING_CHARTS]
    named = {metric.name: metric for metric in known}
    measured = dict.fromkeys(name for row in data.metrics for name in row.numbers if name not in NOT_CHARTED)
    others = [Metric(name, name.replace("_", " ").capitalize()) for name in measured if name not in named]
    return [metric for metric in [*named.values(), *others] if metric.name in measured]


def chart_updates(data: RunData, most_points: int) -> tuple[list[Chart], list[tuple[str, float]]]:
    """Chart what the updates measured; of a number that never changes, return its title and value instead."""
    groups = group_rows(data.metrics, most_points)
    charts, constant = [], []
    for metric in list_update_metrics(data):
        values = trace(groups, partial(_number_of, metric.name))
        if all(value == values[0][1] for _, value in values):
            constant.append((metric.title, values[0][1]))
        else:
            charts.append(Chart(metric.title, metric.note, line_spec(metric.title, values)))
    return charts, constant


def chart_costs(data: RunData, most_points: int) -> list[Chart]:
    """Chart images a second and the seconds of each phase, where they were recorded."""
    groups = group_rows(data.metrics, most_points)
    curves = {phase: trace(groups, partial(_seconds_of, phase)) for phase in PHASES}
    known = [phase for phase in PHASES if curves[phase]]
    if not known:
        return []
    charts: list[Chart] = []
    speed = trace(groups, _images_a_second)
    if speed:
        note = "Images per second, drawn, scored and trained on."
        charts.append(Chart("Throughput", note, line_spec("Throughput", speed)))
    values = [{"i": i, "v": round_digits(v), "phase": phase} for phase in known for i, v in curves[phase]]
    colours = [f"var({PHASE_COLOURS[phase]})" for phase in known]
    spec = frame("Seconds of each phase of an iteration, stacked", values) | {
        "mark": {"type": "area", "opacity": 0.8, "aria": False},
        "encoding": {
            "x": encode_iterations(),
            "y": {"field": "v", "type": "quantitative", "stack": "zero", "title": None},
            "color": {
                "field": "phase", "type": "nominal", "sort": known, "legend": None,
                "scale": {"domain": known, "range": colours},
            },
            "order": {"field": "phase", "sort": "ascending"},
        },
    }  # fmt: skip
    keys = [Key(phase, colour, "band") for phase, colour in zip(known, colours, strict=True)]
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
                        "low": round_digits(low),
                        "high": round_digits(low + histogram.width),
                        "share": round_digits(count / sum(counts)),
                        "shade": round_digits(0.08 + 0.92 * count / largest),
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
    most, low = max(max(counts) for counts in histogram.counts), round_digits(histogram.start)
    spec = frame("Images by reward in the chosen iteration", []) | {
        "height": 220,
        "data": {"name": "bars", "values": []},
        "mark": {"type": "rect", "color": f"var({colour})", "stroke": "var(--ground)", "strokeWidth": 1},
        "encoding": {
            "x": {
                "field": "low", "type": "quantitative", "title": "reward", "axis": {"tickCount": 6},
                "scale": {"domain": [low, round_digits(histogram.start + BINS * histogram.width)], "nice": False},
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
    """Overlay the curves of several runs."""
    values = [
        {"i": iteration, "v": round_digits(value), "run": line.run, "c": line.method}
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
    """Return the CSS colour of a method; there are seven, which repeat on dashed lines."""
    return f"var(--run-{method % RUN_COLOURS + 1})"


def _mean_of(reward: str, row: IterationMetrics) -> float | None:
    return row.scored.get(reward)


def _spread_of(reward: str, row: IterationMetrics) -> float | None:
    return row.reward_stds.get(reward)


def _number_of(name: str, row: IterationMetrics) -> float | None:
    return row.numbers.get(name)


def _seconds_of(phase: str, row: IterationMetrics) -> float | None:
    return row.seconds(phase)


def _images_a_second(row: IterationMetrics) -> float | None:
    seconds = [row.seconds(phase) for phase in PHASES]
    known = [value for value in seconds if value is not None]
    return row.samples / sum(known) if row.samples and len(known) == len(PHASES) and sum(known) else None


@dataclass(frozen=True)
class RewardPoint:
    """A point of a reward's curve."""

    iteration: int
    mean: float
    spread: float | None
    """Standard deviation over images."""
    best: float | None


def _reward_points(groups: Groups, mean: Read, spread: Read, *, best: bool) -> list[RewardPoint]:
    points = []
    for group in groups:
        value = read_group(group, mean)
        if value is not None:
            highest = read_group(group, lambda row: row.reward_best, max) if best else None
            points.append(RewardPoint(group[-1].checkpoint, value, read_group(group, spread), highest))
    return points


def _values_of(reward: str, evaluation: Evaluation) -> np.ndarray | None:
    return evaluation.rewards.get(reward)


def _evaluated(data: RunData, values_of: Callable[[Evaluation], np.ndarray | None]) -> list[dict[str, Any]]:
    """Return the means of the evaluations with their standard errors, for training and for held-out prompts."""
    points = []
    for evaluation in data.evaluations:
        values = values_of(evaluation)
        for held_out in (False, True):
            found = None if values is None else estimate_images(evaluation, values, evaluation.held_out == held_out)
            if found:
                error = found.error if math.isfinite(found.error) else 0.0
                points.append(
                    {
                        "i": evaluation.checkpoint,
                        "v": round_digits(found.mean),
                        "low": round_digits(found.mean - error),
                        "high": round_digits(found.mean + error),
                        "part": "held-out prompts" if held_out else "held-out seeds",
                    }
                )
    return points


def _chart_reward(
    title: str,
    note: str,
    colour: str,
    values: Sequence[RewardPoint],
    points: Sequence[Mapping[str, Any]],
    bounds: Range = FREE,
) -> Chart:
    every = max(1, len(values) // HOVER_POINTS)
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(values):
        row: dict[str, Any] = {"i": point.iteration, "v": round_digits(point.mean)}
        if point.spread is not None:
            low, high = band(point.mean, point.spread, bounds)
            row |= {"low": round_digits(low), "high": round_digits(high), "std": round_digits(point.spread)}
        if point.best is not None:
            row["best"] = round_digits(point.best)
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
        of_part = [evaluated for evaluated in points if evaluated["part"] == part]
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
