"""The runs of a report or a comparison: which are seeds of one method, and whether their rewards are comparable."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.private import name_reward, withhold
from rlcm_cli.runs.held_out import has_deviations
from rlcm_cli.runs.run import Run, identify, open_run
from rlcm_cli.store.layout import RunLayout

ONLY_SEED = re.compile(r"seed[-_. ]?\d+")
"""Name of a folder that tells a run's seed and nothing else."""
DEVIATIONS = ", each in standard deviations"
"""Unit of a sum of rewards that training normalises."""


@dataclass(frozen=True)
class ComparedRun:
    """A run with what decides which others it may be compared with."""

    run: Run
    name: str
    """Of its folder, without the folders above, which a report must not show; may be empty."""
    label: str = ""
    """Name of its method; empty: found from the names of the folders."""

    @property
    def layout(self) -> RunLayout:
        """Its paths."""
        return self.run.layout

    @property
    def config(self) -> Config:
        """Its resolved configuration."""
        return self.run.config

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """All that decides what the run computes except the seed, as plain values."""
        return {key: value for key, value in identify(self.config).items() if key != "seed"}

    @functools.cached_property
    def tasks(self) -> Mapping[str, Mapping[str, float]]:
        """Task → reward → weight."""
        return {name: task.rewards for name, task in self.config.joint_tasks().items()}

    @functools.cached_property
    def trained(self) -> list[str]:
        """The rewards that are trained on, of all tasks."""
        return list(dict.fromkeys(name for weights in self.tasks.values() for name in weights))

    @functools.cached_property
    def rewards(self) -> Mapping[str, str]:
        """Reward, trained on or monitored → what identifies it with its settings, the name of its folders."""
        return {name: spec.directory for name, spec in self.run.reward_specs().items()}

    @property
    def normalised(self) -> bool:
        """Whether training normalises each of several rewards, so that their sum is not what is trained for."""
        tasks = self.config.joint_tasks().values()
        return any(task.combine == "normalised" and len(task.rewards) > 1 for task in tasks)


def open_compared(root: Path, name: str | None = None, label: str = "") -> ComparedRun:
    """Open a run for a report or a comparison. Raises `MissingFileError` where there is none.

    `name`: as people know it, for a run that is a copy here; None: that of its folder.
    """
    if not (root / "config.json").is_file():
        raise MissingFileError(f"{root}: is not a run directory (no config.json); pass one that `rlcm loop` has made")
    return ComparedRun(open_run(root), name_folder(root) if name is None else name, label)


def name_folder(root: Path) -> str:
    """Return the name of a run's folder; of one that only tells its seed with that of the folder above."""
    folder = root.resolve()
    return f"{_above(folder)}/{folder.name}" if ONLY_SEED.fullmatch(folder.name) else folder.name


def check_comparable(runs: Sequence[ComparedRun], component: str | None) -> None:
    """Raise `ConfigError` where the rewards of the runs are not the same quantity."""
    first = runs[0]
    for other in runs:
        root = other.layout.root
        if component is None:
            if _goal(other) != _goal(first):
                common = [name for name in first.rewards if first.rewards[name] == other.rewards.get(name)]
                remedy = f"compare one reward of both by --reward NAME: {', '.join(common)}" if common else "leave one"
                raise ConfigError(
                    f"{root}: is trained for {describe_goals(other)}, {first.layout.root} for "
                    f"{describe_goals(first)}, so their totals cannot be compared; {remedy}"
                )
        elif component not in other.rewards:
            raise ConfigError(
                f"--reward {component}: {root} has not scored it in training; its rewards are "
                f"{', '.join(other.rewards)} (what only held-out images were scored by is compared without --reward)"
            )
        for name in first.trained if component is None else [component]:
            if other.rewards[name] != first.rewards[name]:
                raise ConfigError(
                    f"{root}: reward '{name}' has other settings than in {first.layout.root}, so its values cannot be "
                    "compared; compare runs with the same reward_settings"
                )


def check_distinct(runs: Sequence[ComparedRun]) -> None:
    """Raise `ConfigError` where a run is given twice."""
    folders = [run.layout.root.resolve() for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if folders.count(folder) > 1:
            raise ConfigError(f"{run.layout.root}: is given twice; give each run once")


def group_runs(compared: Sequence[ComparedRun]) -> dict[str, list[ComparedRun]]:
    """Group runs that differ only in their seeds into methods, by label, in the order of their first runs.

    Raises `ConfigError` where a run or a seed counts twice, or a label joins runs of several methods.
    """
    check_distinct(compared)
    groups: dict[tuple[str, str], list[ComparedRun]] = {}
    for run in compared:
        groups.setdefault((run.label, json.dumps(run.settings, sort_keys=True)), []).append(run)
    methods: dict[str, list[ComparedRun]] = {}
    for (stated, _), runs in groups.items():
        for run in runs:
            twin = next(other for other in runs if other.config.seed == run.config.seed)
            if twin is not run:
                raise ConfigError(
                    f"{run.layout.root}: has the settings and the seed of {twin.layout.root}, and a seed counts once; "
                    "leave one out, or give each a --label"
                )
        if stated in methods:
            raise ConfigError(
                f"--label {stated}: {runs[0].layout.root} and {methods[stated][0].layout.root} differ in more than "
                "their seeds; give each method its own label"
            )
        methods[stated or _find_label(runs, {*methods, *(label for label, _ in groups)})] = runs
    return methods


def describe_goals(compared: ComparedRun) -> str:
    """Describe what a run is trained for, with the shares of several tasks."""
    tasks = compared.config.joint_tasks()
    if len(tasks) == 1:
        return describe_weights(next(iter(tasks.values())).rewards)
    return ", ".join(
        f"{describe_weights(task.rewards)} ({name}, share {task.share:g})" for name, task in tasks.items()
    )


def describe_weights(weights: Mapping[str, float]) -> str:
    """Describe a weighted sum of rewards, without the folders and addresses of their names.

    >>> describe_weights({"compressibility": 1.0, "recognition": 2.0})
    'compressibility + 2 × recognition'
    """
    return " + ".join(
        name_reward(name) if weight == 1 else f"{weight:g} × {name_reward(name)}" for name, weight in weights.items()
    )


def describe_held_out(compared: ComparedRun) -> str:
    """Describe what a run reaches on held-out images: the sum of its rewards, and in which unit."""
    scaled = has_deviations(compared.config).values()
    note = DEVIATIONS if all(scaled) else ", in standard deviations where training normalises" if any(scaled) else ""
    return describe_goals(compared) + note


def describe_total(compared: ComparedRun) -> str:
    """Describe what a run's mean reward is: the sum of its rewards as they are, which need not be the goal."""
    note = " (raw sum; training normalises each reward)" if compared.normalised else ""
    return describe_goals(compared) + note


@dataclass(frozen=True)
class SettingRow:
    """A setting in which methods differ."""

    key: str
    values: Mapping[str, str]
    """Method → its value as text, without paths of this machine."""


def list_differences(settings: Mapping[str, Mapping[str, Any]]) -> list[SettingRow]:
    """List the settings in which methods differ; `settings`: method → all that decides what it computes."""
    leaves = {method: dict(_leaves(of_method)) for method, of_method in settings.items()}
    rows = []
    for key in dict.fromkeys(key for of_method in leaves.values() for key in of_method):
        values = {method: of_method.get(key) for method, of_method in leaves.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            shown = {method: format_setting(withhold(value)) for method, value in values.items()}
            if len(set(shown.values())) == 1:  # they differ in what is left out
                shown = {method: f"{text} ({number})" for number, (method, text) in enumerate(shown.items(), 1)}
            rows.append(SettingRow(key, shown))
    return rows


def format_setting(value: Any) -> str:
    """Return a plain value of a configuration as text."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key} = {format_setting(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(format_setting, value)) or "none"
    return str(value)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        key = f"{prefix}{name_reward(name)}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _goal(compared: ComparedRun) -> Any:
    """What the training reward is: of one task its weights, of several also their names and shares."""
    tasks = compared.config.joint_tasks()
    if len(tasks) == 1:
        return [task.rewards for task in tasks.values()]
    return {name: (task.rewards, task.share) for name, task in tasks.items()}


def _find_label(runs: Sequence[ComparedRun], taken: Collection[str]) -> str:
    """Name a method by what the folders of its seeds have in common, by the folder above where that is nothing."""
    label = runs[0].name
    folders = [run.layout.root.resolve() for run in runs]
    if len(runs) > 1 or ONLY_SEED.fullmatch(folders[0].name):
        names = sorted(folder.name for folder in folders)
        same = takewhile(lambda letters: letters[0] == letters[1], zip(names[0], names[-1], strict=False))
        common = re.sub(r"([-_. ]?seed)?[-_. ]*\d*$", "", "".join(letter for letter, _ in same))
        label = common or _above(folders[0])
    numbered = (f"{label} ({number})" for number in count(2))
    return next(name for name in chain([label], numbered) if name not in taken)


def _above(folder: Path) -> str:
    """Return the name of the folder above, `runs` for the home folder: its name is the user's."""
    return "runs" if str(folder.parent) == os.path.expanduser("~") else folder.parent.name
