"""What a report is made from: everything of a run that can be read, and a line for each thing that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError, RlcmError
from rlcm_cli.report.compare.runs import ComparedRun
from rlcm_cli.report.private import withhold_sentence
from rlcm_cli.runs.hacking import find_alarms
from rlcm_cli.store.evaluations import Evaluation, comparable_evaluations, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.metrics import IterationMetrics, read_derived_metrics, read_iteration_metrics
from rlcm_cli.store.reward_versions import comparable_rows, newest_scores
from rlcm_cli.store.rollouts import missing_rewards, read_rewards
from rlcm_cli.store.run import read_versions
from rlcm_cli.wording import command, count

Found = TypeVar("Found")
MOST_FAULTS = 4


@dataclass(frozen=True)
class StoredRewards:
    """The stored rewards of an iteration."""

    manifest: RolloutManifest
    rewards: Mapping[str, np.ndarray]
    """Reward → float32 [samples], NaN where the sample's task does not have it."""


@dataclass(frozen=True)
class RunData:
    """What could be read of a run."""

    label: str
    """Display name, unlike that of any other run of the report."""
    run: ComparedRun
    versions: Mapping[str, str]
    metrics: Sequence[IterationMetrics]
    """Oldest first."""
    rollouts: Sequence[StoredRewards]
    """Of the iterations whose rewards are there, oldest first."""
    evaluations: Sequence[Evaluation]
    """By checkpoint, ascending."""
    alarms: Mapping[str, str]
    """Monitored reward → a line on how the training reward is hacked."""
    faults: Sequence[str]
    """What is missing or damaged, a line each, without the folder in which the run lies."""

    @property
    def layout(self) -> RunLayout:
        """Paths of the run."""
        return self.run.layout

    @property
    def config(self) -> Config:
        """Resolved configuration of the run."""
        return self.run.config

    def rewards(self) -> list[str]:
        """Every reward of the run, those that are trained on first."""
        scored = [name for row in self.metrics for name in (*row.rewards, *row.monitored)]
        scored += [name for evaluation in self.evaluations for name in evaluation.rewards]
        return list(dict.fromkeys([*self.run.trained, *self.run.rewards, *scored]))


def name_runs(runs: Sequence[ComparedRun]) -> list[str]:
    """Return each run a name that no other has: its folder's, or its preset's where the folder has none."""
    names: list[str] = []
    for run in runs:
        plain = run.name or run.config.task
        taken = sum(name == plain or name.startswith(f"{plain} (") for name in names)
        names.append(f"{plain} ({taken + 1})" if taken else plain)
    return names


def read_run(run: ComparedRun, label: str, until: int | None = None) -> RunData:
    """Read a run, up to a checkpoint or all of it; what is damaged becomes a line of `faults` and is left out.

    Raises `ConfigError` where there is nothing to report.
    """
    layout, faults = run.layout, _Faults(run.layout, label)
    whole = [row for row in _read_metrics(run, faults) if until is None or row.checkpoint <= until]
    metrics = comparable_rows(whole)
    if len(metrics) < len(whole):
        faults.lines.append(
            f"The code, weights or server of a reward changed after iteration {len(whole) - len(metrics)}; earlier "
            "scores are left out."
        )
    drawn = [number for number in layout.evaluations() if until is None or number <= until]
    evaluations = [faults.attempt(partial(read_evaluation, layout, number)) for number in drawn]
    rollouts = _read_rollouts(run, range(len(whole) - len(metrics), len(whole)), faults, until)
    if not (metrics or any(evaluations) or rollouts):
        raise ConfigError(
            f"{layout.root}: holds no readable metrics, evaluations or rewards, so there is nothing to report; resume "
            f"it with `{command('loop', '--run', layout.root)}`" + (f" ({faults.lines[0]})" if faults.lines else "")
        )
    versions = faults.attempt(partial(read_versions, layout)) or {}
    found = comparable_evaluations([evaluation for evaluation in evaluations if evaluation is not None])
    if not metrics:
        faults.lines.append("There are no metrics, so there are no training curves.")
    if not found:
        faults.lines.append("There are no evaluations: no images of fixed prompts and seeds.")
    return RunData(
        label=label,
        run=run,
        versions=versions,
        metrics=metrics,
        rollouts=rollouts,
        evaluations=found,
        alarms=find_alarms(run.config, metrics),
        faults=faults.shown(),
    )


def read_until(run: ComparedRun, checkpoint: int) -> RunData:
    """Read what a model card tells of a checkpoint and of the training before it; the stored rewards are left out."""
    layout = run.layout
    numbers = [number for number in layout.measured() if number <= checkpoint]
    metrics = comparable_rows([read_iteration_metrics(layout, number) for number in numbers])
    drawn = [number for number in layout.evaluations() if number <= checkpoint]
    evaluations = [read_evaluation(layout, number) for number in dict.fromkeys([*drawn[:1], *drawn[-1:]])]
    return RunData(
        label=run.name,
        run=run,
        versions={},
        metrics=metrics,
        rollouts=[],
        evaluations=comparable_evaluations(evaluations),
        alarms=find_alarms(run.config, metrics),
        faults=[],
    )


class _Faults:
    """Notes what cannot be read, without the folder in which the run lies."""

    def __init__(self, layout: RunLayout, label: str) -> None:
        self.lines: list[str] = []
        self._root, self._label = str(layout.root), label

    def attempt(self, read: Callable[[], Found]) -> Found | None:
        """Return what `read` returns, None where it raises a `RlcmError`, which is noted."""
        try:
            return read()
        except RlcmError as error:
            self.lines.append(withhold_sentence(str(error).replace(self._root, self._label)))
            return None

    def shown(self) -> list[str]:
        """Return the first lines, and how many more there are."""
        more = len(self.lines) - MOST_FAULTS
        return [*self.lines[:MOST_FAULTS], *([f"… and {more} more."] if more > 0 else [])]


def _read_metrics(run: ComparedRun, faults: _Faults) -> list[IterationMetrics]:
    """Read the metrics file by file, so that a damaged one costs only its iteration; else what is derived of them."""
    layout, numbers = run.layout, run.layout.measured()
    rows = [faults.attempt(partial(read_iteration_metrics, layout, number)) for number in numbers]
    if not numbers and layout.metrics_jsonl.exists():
        rows = [*(faults.attempt(partial(read_derived_metrics, layout)) or [])]
    found = [row for row in rows if row is not None]
    whole = [row for row in found if row.rewards.keys() >= {*run.trained}]
    if len(whole) < len(found):
        faults.lines.append(f"The metrics of {count(len(found) - len(whole), 'iteration')} lack a trained reward.")
    return whole


def _read_rollouts(run: ComparedRun, trained: range, faults: _Faults, until: int | None) -> list[StoredRewards]:
    layout, rollouts, unscored = run.layout, [], 0
    for iteration in layout.iterations():
        if iteration < trained.start or (until is not None and iteration >= until):
            continue
        manifest = faults.attempt(partial(read_manifest, layout.manifest(iteration)))
        if manifest is None:
            continue
        rewards: dict[str, np.ndarray] = {}
        for name, directory in run.rewards.items():
            if missing_rewards(layout, manifest, newest_scores(layout, iteration, directory)):
                # Later iterations are at work, and a reward may be monitored for a part of the training.
                unscored += iteration < trained.stop and name in run.trained
                continue
            tasks = [task for task, weights in run.tasks.items() if name in weights] or manifest.tasks
            values = faults.attempt(partial(read_rewards, layout, manifest, directory, tasks))
            if values is not None:
                rewards[name] = values
        if rewards:
            rollouts.append(StoredRewards(manifest, rewards))
    if unscored:
        faults.lines.append(f"The stored rewards of {count(unscored, 'trained iteration')} are gone.")
    if not rollouts:
        faults.lines.append("There are no stored rewards, so there are no histograms.")
    return rollouts
