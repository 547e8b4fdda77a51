"""What a report is made from: everything of a run that can be read, and a line for each thing that cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from rlcm_cli.errors import ConfigError, CorruptFileError, RlcmError
from rlcm_cli.report.compare.contenders import Contender
from rlcm_cli.report.private import withhold_sentence
from rlcm_cli.store.evaluations import Evaluation, comparable_evaluations, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.reading import LARGEST_JSON, describe_fault, parse_json, read_bytes
from rlcm_cli.store.reward_versions import comparable_rows, newest_scores
from rlcm_cli.store.rollouts import missing_rewards, read_rewards
from rlcm_cli.store.run import read_metrics_row, read_versions
from rlcm_cli.wording import command

Found = TypeVar("Found")
MOST_FAULTS = 4
EVERY_ROW = {"iteration", "checkpoint", "reward_mean", "reward_std", "rewards", "reward_stds", "monitored"}
"""What every iteration's metrics have."""


@dataclass(frozen=True)
class ReportedRun:
    """A run that is reported, as a command has opened it."""

    name: str
    """Of its folder as it was given, for a report must not tell of the folders above; may be empty."""
    contender: Contender
    config: Mapping[str, Any]
    """The resolved configuration as plain values."""
    find_alarms: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, str]]
    """From the metrics of all iterations to monitored reward → one line on how the training reward is hacked."""
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Reward → the least and the largest value that it can have; of those that are left out nothing is known."""


@dataclass(frozen=True)
class Rollout:
    """The stored rewards of an iteration."""

    manifest: RolloutManifest
    rewards: Mapping[str, Tensor]
    """Reward → float32 [samples], NaN where the sample's task does not have it."""


@dataclass(frozen=True)
class Evidence:
    """What could be read of a run."""

    label: str
    """Name for people, unlike that of any other run of the report."""
    run: ReportedRun
    versions: Mapping[str, str]
    metrics: Sequence[Mapping[str, Any]]
    """One row an iteration, oldest first."""
    rollouts: Sequence[Rollout]
    """Of the iterations whose rewards are there, oldest first."""
    evaluations: Sequence[Evaluation]
    """By checkpoint, ascending."""
    alarms: Mapping[str, str]
    faults: Sequence[str]
    """What is missing or damaged, a line each, without the folder in which the run lies."""

    @property
    def layout(self) -> RunLayout:
        """Paths of the run."""
        return self.run.contender.layout

    def trained(self) -> list[str]:
        """Rewards that are trained on."""
        return list(dict.fromkeys(name for weights in self.run.contender.tasks.values() for name in weights))

    def rewards(self) -> list[str]:
        """Every reward of the run, those that are trained on first."""
        scored = [name for row in self.metrics for name in (*row.get("rewards", {}), *row.get("monitored", {}))]
        return list(dict.fromkeys([*self.trained(), *self.run.contender.rewards, *scored]))


def name_runs(runs: Sequence[ReportedRun]) -> list[str]:
    """Give each run a name that no other has: its folder's, of one without a name its task's."""
    names: list[str] = []
    for run in runs:
        plain = run.name or str(run.config["task"])
        taken = sum(name == plain or name.startswith(f"{plain} (") for name in names)
        names.append(f"{plain} ({taken + 1})" if taken else plain)
    return names


def read_run(run: ReportedRun, label: str) -> Evidence:
    """Read a run; what is damaged becomes a line of `faults` and is left out.

    Raises `ConfigError` where there is nothing to report.
    """
    layout, faults = run.contender.layout, _Faults(run.contender.layout, label)
    trained = {name for weights in run.contender.tasks.values() for name in weights}
    whole = _read_metrics(layout, trained, faults)
    metrics = comparable_rows(whole)
    if len(metrics) < len(whole):
        faults.lines.append(
            f"What is behind a reward (its code, weights or server) changed after iteration "
            f"{len(whole) - len(metrics)}; what was scored before is left out."
        )
    evaluations = [faults.attempt(partial(read_evaluation, layout, number)) for number in layout.evaluations()]
    rollouts = _read_rollouts(run, range(len(whole) - len(metrics), len(whole)), faults)
    if not (metrics or any(evaluations) or rollouts):
        raise ConfigError(
            f"{layout.root}: holds no readable metrics, evaluations or rewards, so there is nothing to report; go on "
            f"with `{command('loop', '--run', layout.root)}`" + (f" ({faults.lines[0]})" if faults.lines else "")
        )
    versions = faults.attempt(partial(read_versions, layout)) or {}
    found = comparable_evaluations([evaluation for evaluation in evaluations if evaluation is not None])
    if not metrics:
        faults.lines.append("There are no metrics, so there are no curves of the training.")
    if not found:
        faults.lines.append("There are no evaluations: nothing was drawn with fixed prompts and seeds.")
    return Evidence(
        label=label,
        run=run,
        versions=versions,
        metrics=metrics,
        rollouts=rollouts,
        evaluations=found,
        alarms=run.find_alarms(metrics) if metrics else {},
        faults=faults.shown(),
    )


class _Faults:
    """Notes what cannot be read, without the folder in which the run lies."""

    def __init__(self, layout: RunLayout, label: str) -> None:
        self.lines: list[str] = []
        self._root, self._label = str(layout.root), label

    def attempt(self, read: Callable[[], Found]) -> Found | None:
        """Give what `read` gives, None where it raises a `RlcmError`, which is noted."""
        try:
            return read()
        except RlcmError as error:
            self.lines.append(withhold_sentence(str(error).replace(self._root, self._label)))
            return None

    def shown(self) -> list[str]:
        """Give the first lines, and how many more there are."""
        more = len(self.lines) - MOST_FAULTS
        return [*self.lines[:MOST_FAULTS], *([f"… and {more} more."] if more > 0 else [])]


def _read_metrics(layout: RunLayout, trained: set[str], faults: _Faults) -> list[Mapping[str, Any]]:
    """Read the metrics file by file, so that a damaged one costs its iteration alone; else what is derived of them."""
    numbers = layout.measured()
    rows = [faults.attempt(partial(read_metrics_row, layout, number)) for number in numbers]
    if not numbers and layout.metrics_jsonl.exists():
        rows = faults.attempt(lambda: _read_lines(layout)) or []
    found = [row for row in rows if row is not None]
    whole: list[Mapping[str, Any]] = [
        row for row in found if row.keys() >= EVERY_ROW and row["rewards"].keys() >= trained
    ]
    if len(whole) < len(found):
        faults.lines.append(f"The metrics of {len(found) - len(whole)} iterations lack what they should have.")
    return whole


def _read_lines(layout: RunLayout) -> list[dict[str, Any] | None]:
    lines = read_bytes(layout.metrics_jsonl, LARGEST_JSON).splitlines()
    try:
        return [dict(parse_json(line)) for line in lines]
    except TypeError:
        raise CorruptFileError(f"{layout.metrics_jsonl}: is not a list of metrics") from None
    except ValueError as error:
        fault = describe_fault(error)
        raise CorruptFileError(f"{layout.metrics_jsonl}: is not a list of metrics ({fault})") from None


def _read_rollouts(run: ReportedRun, trained: range, faults: _Faults) -> list[Rollout]:
    layout, rollouts, unscored = run.contender.layout, [], 0
    needed = {name for weights in run.contender.tasks.values() for name in weights}
    for iteration in layout.iterations():
        if iteration < trained.start:
            continue
        manifest = faults.attempt(partial(read_manifest, layout.manifest(iteration)))
        if manifest is None:
            continue
        rewards: dict[str, Tensor] = {}
        for name, directory in run.contender.rewards.items():
            if missing_rewards(layout, manifest, newest_scores(layout, iteration, directory)):
                # Later ones are at work, and a reward may be monitored for a part of the training.
                unscored += iteration < trained.stop and name in needed
                continue
            tasks = [task for task, weights in run.contender.tasks.items() if name in weights] or manifest.tasks
            values = faults.attempt(partial(read_rewards, layout, manifest, directory, tasks))
            if values is not None:
                rewards[name] = values
        if rewards:
            rollouts.append(Rollout(manifest, rewards))
    if unscored:
        faults.lines.append(f"The stored rewards of {unscored} trained iterations are gone.")
    if not rollouts:
        faults.lines.append("There are no stored rewards, so there are no histograms.")
    return rollouts
