"""The report of one or several runs: a single HTML file that asks nothing of a network.

The template writes all text, escaped, so that a report reads and prints without its script; charts and what the
sliders show are JSON in it, and Vega draws them. The Content-Security-Policy of the page allows its own two scripts,
by their digests, and images within the page: nothing can be fetched, nor anything in a prompt be run.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rlcm_cli import __version__
from rlcm_cli.errors import ConfigError
from rlcm_cli.report.compare.runs import ComparedRun, check_distinct, format_setting
from rlcm_cli.report.html.charts import (
    Chart,
    chart_costs,
    chart_iteration,
    chart_rewards,
    chart_spread,
    chart_updates,
    list_update_metrics,
)
from rlcm_cli.report.html.compare import ComparedPrompt, RunRow, chart_comparison, draw_together, tabulate_runs
from rlcm_cli.report.html.images import Budget, Extremes, FixedImage, find_extremes, follow_images, share_budget
from rlcm_cli.report.html.scores import Histogram, PromptTable, count_values, tabulate_prompts
from rlcm_cli.report.private import name_reward, withhold
from rlcm_cli.report.run.data import RunData, name_runs, read_run
from rlcm_cli.report.run.hacking_verdict import HackingVerdict, judge_hacking
from rlcm_cli.report.run.levels import WINDOW, Levels, find_levels, format_level
from rlcm_cli.report.run.summary import (
    Change,
    describe_before_after,
    describe_best,
    describe_change,
    describe_cost,
    describe_training,
    describe_training_goal,
    find_changes,
    format_estimate,
    format_number,
)
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.metrics import IterationMetrics
from rlcm_cli.wording import count, format_duration, to_json_values

TEMPLATES = "templates"
MOST_POINTS = 1000
"""Points of a chart, shared by the runs of a report."""
MOST_REWARDS = 6
"""Rewards of a run whose histograms, samples and prompts are shown: those that are trained on first."""
MOST_COLUMNS = 5
"""Cards in one row at the top."""
MILESTONES = 12
"""Iterations in the table of numbers."""


@dataclass(frozen=True)
class RewardDetail:
    """What a report says of one reward next to its curve."""

    reward: str
    histogram: Histogram | None
    spread: Chart | None
    bars: Chart | None
    extremes: Extremes | None
    prompts: PromptTable | None


@dataclass(frozen=True)
class Milestones:
    """Some iterations with their numbers, as a table."""

    headings: Sequence[str]
    rows: Sequence[tuple[int, Sequence[float | None]]]
    """Iteration, then a number below each heading."""


@dataclass(frozen=True)
class RunSection:
    """What a report tells of one run; plain values and sentences."""

    data: RunData
    goal: str
    levels: Levels | None
    alarms_title: str
    alarms: Sequence[str]
    sentences: Sequence[str]
    changes: Sequence[Change]
    rewards: Sequence[Chart]
    updates: Sequence[Chart]
    constant: Sequence[tuple[str, float]]
    costs: Sequence[Chart]
    checkpoints: Sequence[int]
    images: Sequence[FixedImage]
    details: Sequence[RewardDetail]
    milestones: Milestones | None
    settings: Mapping[str, Sequence[tuple[str, str]]]


def write_report(runs: Sequence[ComparedRun], out: Path, until: Sequence[int] = ()) -> Path:
    """Write the report of runs into one file; return its path.

    `until`: for each run the checkpoint up to which it is reported; empty: all of them whole.

    Raises `ConfigError` where a run has nothing to report, a run is given twice, or the package that the charts
    need is not installed.
    """
    library = _read_library()
    check_distinct(runs)
    limits: Sequence[int | None] = until or [None] * len(runs)
    read = [read_run(run, label, limit) for run, label, limit in zip(runs, name_runs(runs), limits, strict=True)]
    replace_bytes(out, render_report(read, library).encode())
    return out


def render_report(runs: Sequence[RunData], library: str) -> str:
    """Render the page; `library` is the JavaScript of Vega, Vega-Lite and Vega-Embed."""
    budget, points = share_budget(len(runs)), max(200, MOST_POINTS // len(runs))
    sections = [compose_section(data, budget, points) for data in runs]
    specs: list[Mapping[str, Any]] = []
    histograms: list[dict[str, Any]] = []

    def register_chart(chart: Chart) -> int:
        """Note a chart's specification; return its number, which the page refers to."""
        specs.append(chart.spec)
        return len(specs) - 1

    def register_histogram(histogram: Histogram) -> int:
        histograms.append(dataclasses.asdict(histogram))
        return len(histograms) - 1

    script = _read_template("report.js")
    compared: Sequence[RunRow] = tabulate_runs(runs) if len(runs) > 1 else []
    together: tuple[Sequence[str], Sequence[ComparedPrompt]] = draw_together(runs)
    return (
        make_environment()
        .get_template("report.html")
        .render(
            sections=sections,
            compared=compared,
            compared_charts=chart_comparison(runs) if compared else [],
            together=together,
            compared_names={change.reward: change.name for row in compared for change in row.changes.values()},
            window=WINDOW,
            raw_sum=any(data.run.normalised for data in runs),
            register_chart=register_chart,
            register_histogram=register_histogram,
            specs=specs,
            histograms=histograms,
            style=_read_template("report.css"),
            library=library,
            script=script,
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {_digest(library)} "
            f"{_digest(script)}; base-uri 'none'; form-action 'none'",
            version=__version__,
        )
    )


def make_environment() -> Environment:
    """Return the environment of the page's template: it escapes all text, and its filters format numbers."""
    environment = Environment(
        loader=PackageLoader("rlcm_cli.report", TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "number": _format_optional,
        "level": format_level,
        "columns": balance_columns,
        "estimate": format_estimate,
        "duration": format_duration,
        "people": name_reward,
        "before_after": describe_before_after,
        "count_of": count,
        "plain": to_json_values,
    }
    return environment


def compose_section(data: RunData, budget: Budget, most_points: int) -> RunSection:
    """Compose what a report shows of a run."""
    changes, hacking = find_changes(data), judge_hacking(data)
    updates, constant = chart_updates(data, most_points)
    checkpoints, images = follow_images(data, budget)
    shown = data.rewards()[:MOST_REWARDS]
    trained = [change for change in changes if change.is_sum or change.reward in data.run.trained]
    sentences = [describe_training(data), describe_cost(data), *map(describe_change, trained)]
    if not changes:
        sentences.append(
            "Fixed images were not drawn with two checkpoints, so only the images of training show what was learned."
        )
    return RunSection(
        data=data,
        goal=describe_training_goal(data),
        levels=find_levels([row.reward_mean for row in data.metrics]) if data.metrics else None,
        alarms_title=hacking.title,
        alarms=list_alarms(data, hacking),
        sentences=[*sentences, *describe_best(data), *filter(None, [hacking.sentence])],
        changes=changes,
        rewards=chart_rewards(data, most_points),
        updates=updates,
        constant=constant,
        costs=chart_costs(data, most_points),
        checkpoints=checkpoints,
        images=images,
        details=[detail for reward in shown if (detail := _detail(data, reward, budget)) is not None],
        milestones=tabulate_milestones(data),
        settings=_list_settings(data.config.model_dump(mode="json")),
    )


def list_alarms(data: RunData, hacking: HackingVerdict) -> list[str]:
    """Return a line for each alarm and, if training raised one, what to use in the place of the newest checkpoint."""
    advice = (
        "`rlcm generate --lora RUN --checkpoint best` and `rlcm export RUN --checkpoint best` use it, "
        "and `rlcm report RUN --checkpoint best` shows the run up to it."
    )
    return [*hacking.alarms, advice] if data.alarms else [*hacking.alarms]


def _detail(data: RunData, reward: str, budget: Budget) -> RewardDetail | None:
    colour = "--trained" if reward in data.run.trained else "--monitored"
    histogram = count_values(data, reward)
    detail = RewardDetail(
        reward=reward,
        histogram=histogram,
        spread=chart_spread(histogram, colour) if histogram else None,
        bars=chart_iteration(histogram, colour) if histogram else None,
        extremes=find_extremes(data, reward, budget.extremes),
        prompts=tabulate_prompts(data, reward),
    )
    return detail if detail.histogram or detail.extremes or detail.prompts else None


def tabulate_milestones(data: RunData) -> Milestones | None:
    """Tabulate the numbers of some iterations, evenly spread with the first and the last; None where there is none."""
    metrics, rewards, measured = data.metrics, data.rewards(), list_update_metrics(data)
    if not metrics:
        return None
    last = len(metrics) - 1
    chosen = list(range(len(metrics)))
    if last >= MILESTONES:
        chosen = [round(index * last / (MILESTONES - 1)) for index in range(MILESTONES)]

    def numbers_of(row: IterationMetrics) -> list[float | None]:
        of_rewards = [row.scored.get(name) for name in rewards]
        of_updates = [row.numbers.get(metric.name) for metric in measured]
        return [row.reward_mean, row.reward_std, row.reward_best, *of_rewards, *of_updates]

    total = "weighted sum" if len(data.run.trained) > 1 else "reward"
    headings = [total, "std", "best", *map(name_reward, rewards), *(metric.title for metric in measured)]
    return Milestones(headings, [(metrics[index].checkpoint, numbers_of(metrics[index])) for index in chosen])


def _list_settings(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return section → (key, value) as text, without paths and addresses."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in withhold(dict(config)).items():
        if isinstance(value, dict):
            rows = [(str(name), format_setting(item)) for name, item in value.items()]
            if rows:
                sections[key] = rows
        else:
            sections.setdefault("run", []).append((key, format_setting(value)))
    return sections


def balance_columns(count: int) -> int:
    """Return in how many columns so many cards stand, so that no row has a single one left over."""
    return max(1, math.ceil(count / max(1, math.ceil(count / MOST_COLUMNS))))


def _format_optional(value: float | None) -> str:
    return "–" if value is None else format_number(value)


@functools.cache
def _read_library() -> str:
    try:
        import vl_convert
    except ImportError:
        raise ConfigError(
            "the report's charts need the package vl-convert-python; install it with `pip install 'rlcm[report]'`"
        ) from None
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _read_template(name: str) -> str:
    return resources.files("rlcm_cli.report").joinpath(TEMPLATES, name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return the digest by which a Content-Security-Policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
