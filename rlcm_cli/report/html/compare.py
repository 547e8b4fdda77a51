"""Several runs in one report: their curves overlaid, their final rewards, and the same prompts side by side."""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rlcm_cli.report.html.charts import Chart, Key, Line, chart_runs, group_rows, method_colour, trace
from rlcm_cli.report.html.images import encode_picture
from rlcm_cli.report.private import name_reward
from rlcm_cli.report.run.data import RunData
from rlcm_cli.report.run.levels import WINDOW, Levels, choose_window, find_levels, smooth
from rlcm_cli.report.run.summary import Change, count_images, describe_training_goal, find_changes
from rlcm_cli.store.metrics import PHASES, IterationMetrics

MOST_POINTS = 250
MOST_PROMPTS = 6
MOST_RUNS_DRAWN = 12


@dataclass(frozen=True)
class RunRow:
    """A row of the table of runs."""

    label: str
    colour: str
    goal: str
    seed: int
    iterations: int
    images: int
    seconds: float
    levels: Levels | None
    """Of the mean training reward; None where there are no metrics."""
    changes: Mapping[tuple[str, bool], Change]
    """(trained reward, on held-out prompts) → its change on fixed images."""


@dataclass(frozen=True)
class ComparedPrompt:
    """A prompt, drawn with the last evaluated checkpoint of each run."""

    prompt: str
    pictures: Sequence[str]


def group_methods(runs: Sequence[RunData]) -> list[int]:
    """Return the method of each run: runs that differ only in their seeds have the same."""
    settings = [json.dumps(data.run.settings, sort_keys=True) for data in runs]
    known = list(dict.fromkeys(settings))
    return [known.index(one) for one in settings]


def tabulate_runs(runs: Sequence[RunData]) -> list[RunRow]:
    """Return the row of each run in the table."""
    rows = []
    for data, method in zip(runs, group_methods(runs), strict=True):
        metrics = data.metrics
        rows.append(
            RunRow(
                label=data.label,
                colour=method_colour(method),
                goal=describe_training_goal(data),
                seed=data.config.seed,
                iterations=len(metrics),
                images=count_images(data),
                seconds=sum(row.seconds(phase) or 0 for row in metrics for phase in PHASES),
                levels=find_levels([row.reward_mean for row in metrics]) if metrics else None,
                changes={
                    (change.reward, change.held_out): change
                    for change in find_changes(data)
                    if change.is_sum or change.reward in data.run.trained
                },
            )
        )
    return rows


def chart_comparison(runs: Sequence[RunData]) -> list[Chart]:
    """Overlay the curves of each reward; a reward with other settings is another reward."""
    methods = group_methods(runs)
    lines: dict[tuple[str, str], list[Line]] = {}
    for data, method in zip(runs, methods, strict=True):
        groups = group_rows(data.metrics, MOST_POINTS)
        for reward in data.rewards():
            values = trace(groups, partial(_mean_of, reward))
            if values:
                key = reward, data.run.rewards.get(reward, "")
                numbers, means = zip(*values, strict=True)
                curve = list(zip(numbers, smooth(means, choose_window(len(means))), strict=True))
                lines.setdefault(key, []).append(Line(data.label, method, curve))
    keys = [Key(name, method_colour(method)) for method, name in enumerate(name_methods(runs))]
    names = [name for name, _ in lines]
    charts = []
    for (name, directory), of_reward in lines.items():
        title = name_reward(name) + (f" ({directory.rpartition('-')[2]})" if names.count(name) > 1 else "")
        note = f"Mean of {WINDOW} iterations, or of half of a shorter run's; one line per run, one colour per method."
        charts.append(
            chart_runs(title, note, of_reward, [keys[m] for m in sorted({line.method for line in of_reward})])
        )
    return charts


def _mean_of(reward: str, row: IterationMetrics) -> float | None:
    return row.scored.get(reward)


def name_methods(runs: Sequence[RunData]) -> list[str]:
    """Name each method by what the names of its runs begin with."""
    methods = group_methods(runs)
    names = []
    for method in range(max(methods) + 1):
        labels = [data.label for data, of_run in zip(runs, methods, strict=True) if of_run == method]
        if len(labels) == 1:
            names += labels
        else:
            common = os.path.commonprefix(labels)  # noqa: RUF071 (letters, not folders)
            shared = re.sub(r"([-_. /]*seed)?[-_. /]*\d*$", "", common)
            names.append(f"{shared or labels[0]} ({len(labels)} seeds)")
    return names


def draw_together(runs: Sequence[RunData]) -> tuple[list[str], list[ComparedPrompt]]:
    """Return the labels of runs, and the first image of common prompts by each run's last evaluated checkpoint.

    Runs of one seed have drawn them from the same noise.
    """
    shown = [data for data in runs if data.evaluations][:MOST_RUNS_DRAWN]
    if len(shown) < 2:
        return [], []
    first_rows: list[dict[str, int]] = []
    for data in shown:
        rows: dict[str, int] = {}
        for row, prompt in enumerate(data.evaluations[-1].prompts):
            rows.setdefault(prompt, row)
        first_rows.append(rows)
    common = [prompt for prompt in first_rows[0] if all(prompt in rows for rows in first_rows)]
    labels = [f"{data.label} at {data.evaluations[-1].checkpoint}" for data in shown]
    return labels, [
        ComparedPrompt(
            prompt,
            [
                encode_picture(data.evaluations[-1].images[rows[prompt]])
                for data, rows in zip(shown, first_rows, strict=True)
            ],
        )
        for prompt in common[:MOST_PROMPTS]
    ]
