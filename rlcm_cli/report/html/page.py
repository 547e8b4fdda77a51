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
from rlcm_cli.report.compare.contenders import normalises
from rlcm_cli.report.html.charts import (
    Chart,
    chart_costs,
    chart_iteration,
    chart_rewards,
    chart_spread,
    chart_updates,
)
from rlcm_cli.report.html.compare import (
    ComparedPrompt,
    ComparedRun,
    chart_comparison,
    draw_together,
    tabulate_runs,
)
from rlcm_cli.report.html.images import Budget, Extremes, FixedImage, find_extremes, follow_images, share_budget
from rlcm_cli.report.html.scores import Histogram, PromptTable, count_values, tabulate_prompts
from rlcm_cli.report.private import name_reward, withhold, withhold_sentence
from rlcm_cli.report.run.data import Evidence, ReportedRun, name_runs, read_run
from rlcm_cli.report.run.levels import WINDOW, Levels, find_levels, say_level
from rlcm_cli.report.run.summary import (
    Change,
    describe_change,
    describe_cost,
    describe_ends,
    describe_goal,
    describe_monitoring,
    describe_training,
    find_changes,
    say_count,
    say_duration,
    say_estimate,
    say_number,
)
from rlcm_cli.store.atomic import replace_bytes

TEMPLATES = "templates"
MOST_POINTS = 1000
"""Points of a chart, shared by the runs of a report."""
MOST_REWARDS = 6
"""Rewards of a run whose histograms, samples and prompts are shown: those that are trained on first."""
MOST_COLUMNS = 5
"""Cards beside each other at the top."""
MILESTONES = 12
"""Iterations in the table of numbers."""


@dataclass(frozen=True)
class RewardDetail:
    """What a report tells of one reward beside its curve."""

    reward: str
    histogram: Histogram | None
    spread: Chart | None
    bars: Chart | None
    extremes: Extremes | None
    prompts: PromptTable | None


@dataclass(frozen=True)
class Chapter:
    """What a report tells of one run; plain values and sentences."""

    evidence: Evidence
    goal: str
    levels: Levels | None
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
    milestones: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Sequence[tuple[str, str]]]


def write_report(runs: Sequence[ReportedRun], out: Path) -> Path:
    """Write the report of runs into one file; give its path.

    Raises `ConfigError` where a run has nothing to report, a run is given twice, or the package that the charts
    need is not installed.
    """
    library = _read_library()
    places = [run.contender.layout.root.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{run.contender.layout.root}: is given twice; give each run once")
    evidences = [read_run(run, label) for run, label in zip(runs, name_runs(runs), strict=True)]
    replace_bytes(out, render_report(evidences, library).encode())
    return out


def render_report(evidences: Sequence[Evidence], library: str) -> str:
    """Render the page; `library` is the JavaScript of Vega, Vega-Lite and Vega-Embed."""
    budget, points = share_budget(len(evidences)), max(200, MOST_POINTS // len(evidences))
    chapters = [compose_chapter(evidence, budget, points) for evidence in evidences]
    specs: list[Mapping[str, Any]] = []
    histograms: list[Histogram] = []

    def place(chart: Chart) -> int:
        """Note a chart's specification; give its number, which the page refers to."""
        specs.append(chart.spec)
        return len(specs) - 1

    def place_histogram(histogram: Histogram) -> int:
        histograms.append(histogram)
        return len(histograms) - 1

    script = _read_template("report.js")
    environment = Environment(
        loader=PackageLoader("rlcm_cli.report", TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "number": _say_optional,
        "level": say_level,
        "columns": balance_columns,
        "estimate": say_estimate,
        "duration": say_duration,
        "people": name_reward,
        "ends": describe_ends,
        "count_of": say_count,
        "plain": _finite,
    }
    compared: Sequence[ComparedRun] = tabulate_runs(evidences) if len(evidences) > 1 else []
    together: tuple[Sequence[str], Sequence[ComparedPrompt]] = draw_together(evidences)
    return environment.get_template("report.html").render(
        chapters=chapters,
        compared=compared,
        compared_charts=chart_comparison(evidences) if compared else [],
        together=together,
        compared_names={change.reward: change.name for row in compared for change in row.changes.values()},
        window=WINDOW,
        raw_sum=any(normalises(evidence.run.contender) for evidence in evidences),
        place=place,
        place_histogram=place_histogram,
        specs=specs,
        histograms=histograms,
        style=_read_template("report.css"),
        library=library,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {_digest(library)} "
        f"{_digest(script)}; base-uri 'none'; form-action 'none'",
        version=__version__,
    )


def compose_chapter(evidence: Evidence, budget: Budget, most_points: int) -> Chapter:
    """Compose what is told of a run."""
    changes = find_changes(evidence)
    updates, constant = chart_updates(evidence, most_points)
    checkpoints, images = follow_images(evidence, budget)
    shown = evidence.rewards()[:MOST_REWARDS]
    trained = [change for change in changes if change.is_sum or change.reward in evidence.trained()]
    sentences = [describe_training(evidence), describe_cost(evidence), *map(describe_change, trained)]
    if not changes:
        sentences.append(
            "Fixed images were not drawn with two checkpoints: what was learned is judged by training alone."
        )
    return Chapter(
        evidence=evidence,
        goal=describe_goal(evidence),
        levels=find_levels([float(row["reward_mean"]) for row in evidence.metrics]) if evidence.metrics else None,
        alarms=[withhold_sentence(line.replace(name, name_reward(name))) for name, line in evidence.alarms.items()],
        sentences=sentences if evidence.alarms else [*sentences, describe_monitoring(evidence)],
        changes=changes,
        rewards=chart_rewards(evidence, most_points),
        updates=updates,
        constant=constant,
        costs=chart_costs(evidence, most_points),
        checkpoints=checkpoints,
        images=images,
        details=[detail for reward in shown if (detail := _detail(evidence, reward, budget)) is not None],
        milestones=_choose_milestones(evidence.metrics),
        settings=_list_settings(evidence.run.config),
    )


def _detail(evidence: Evidence, reward: str, budget: Budget) -> RewardDetail | None:
    colour = "--trained" if reward in evidence.trained() else "--monitored"
    histogram = count_values(evidence, reward)
    detail = RewardDetail(
        reward=reward,
        histogram=histogram,
        spread=chart_spread(histogram, colour) if histogram else None,
        bars=chart_iteration(histogram, colour) if histogram else None,
        extremes=find_extremes(evidence, reward, budget.extremes),
        prompts=tabulate_prompts(evidence, reward),
    )
    return detail if detail.histogram or detail.extremes or detail.prompts else None


def _choose_milestones(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = len(metrics) - 1
    if last < MILESTONES:
        return list(metrics)
    return [metrics[round(index * last / (MILESTONES - 1))] for index in range(MILESTONES)]


def _list_settings(config: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Give section → (key, value) as text, without paths and addresses."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in withhold(dict(config)).items():
        if isinstance(value, dict):
            rows = [(str(name), _say_setting(item)) for name, item in value.items()]
            if rows:
                sections[key] = rows
        else:
            sections.setdefault("run", []).append((key, _say_setting(value)))
    return sections


def _say_setting(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key} = {_say_setting(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(_say_setting, value)) or "none"
    return str(value)


def balance_columns(count: int) -> int:
    """Return in how many columns so many cards stand, so that no row has a single one left over."""
    return max(1, math.ceil(count / max(1, math.ceil(count / MOST_COLUMNS))))


def _say_optional(value: float | None) -> str:
    return "–" if value is None else say_number(value)


def _finite(value: Any) -> Any:
    """Give a nested value or record as plain values, with None for what is not finite: JSON has no word for that."""
    if isinstance(value, Histogram):
        return _finite(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """Give the digest by which a Content-Security-Policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
