"""The runs of a comparison: which are seeds of one method, and whether their rewards are the same quantity."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.report.private import name_reward, withhold
from rlcm_cli.store.layout import RunLayout


@dataclass(frozen=True)
class Contender:
    """A run that is compared."""

    layout: RunLayout
    seed: int
    settings: Mapping[str, Any]
    """All that decides what the run computes, but for the seed; plain values."""
    tasks: Mapping[str, Mapping[str, float]]
    """Task → reward → weight."""
    shares: Mapping[str, float]
    """Task → its share of an iteration."""
    rewards: Mapping[str, str]
    """Reward, trained on or monitored → what identifies it with its settings."""
    label: str = ""
    """Name of its method; empty: found from the names of the folders."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.layout.root.resolve().name


def check_rewards(contenders: Sequence[Contender], component: str | None) -> None:
    """Raise `ConfigError` where the rewards of the runs are not the same quantity."""
    first = contenders[0]
    for other in contenders:
        root = other.layout.root
        if component is None:
            if _goal(other) != _goal(first):
                common = [name for name in first.rewards if first.rewards[name] == other.rewards.get(name)]
                remedy = f"compare one reward of both by --reward NAME: {', '.join(common)}" if common else "leave one"
                raise ConfigError(
                    f"{root}: is trained for {describe_weights(other)}, {first.layout.root} for "
                    f"{describe_weights(first)}, so their totals cannot be compared; {remedy}"
                )
        elif component not in other.rewards:
            raise ConfigError(
                f"--reward {component}: {root} has not scored it; its rewards are {', '.join(other.rewards)}"
            )
        names = _trained(first) if component is None else [component]
        for name in names:
            if other.rewards[name] != first.rewards[name]:
                raise ConfigError(
                    f"{root}: reward '{name}' has other settings than in {first.layout.root}, so its values cannot be "
                    "compared; compare runs with the same reward_settings"
                )


def group_runs(contenders: Sequence[Contender]) -> dict[str, list[Contender]]:
    """Group runs that differ only in their seeds into methods, by label, in the order of their first runs.

    Raises `ConfigError` where a run or a seed counts twice, or a label joins runs of several methods.
    """
    places = [contender.layout.root.resolve() for contender in contenders]
    for contender, place in zip(contenders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{contender.layout.root}: is given twice; give each run once")
    groups: dict[tuple[str, str], list[Contender]] = {}
    for contender in contenders:
        groups.setdefault((contender.label, json.dumps(contender.settings, sort_keys=True)), []).append(contender)
    methods: dict[str, list[Contender]] = {}
    for (stated, _), runs in groups.items():
        for run in runs:
            twin = next(other for other in runs if other.seed == run.seed)
            if twin is not run:
                raise ConfigError(
                    f"{run.layout.root}: has the settings and the seed of {twin.layout.root}, and a seed counts once; "
                    "leave one out, or give each a --label"
                )
        if stated in methods:
            raise ConfigError(
                f"--label {stated}: {runs[0].layout.root} and {methods[stated][0].layout.root} differ in more than "
                "their seeds; give each method a label of its own"
            )
        methods[stated or _find_label(runs, {*methods, *(label for label, _ in groups)})] = runs
    return methods


def describe_weights(contender: Contender) -> str:
    """Say in words what a run is trained for."""
    tasks = contender.tasks
    if len(tasks) == 1:
        return describe_sum(next(iter(tasks.values())))
    return ", ".join(
        f"{describe_sum(weights)} ({task}, share {contender.shares[task]:g})" for task, weights in tasks.items()
    )


def describe_sum(weights: Mapping[str, float]) -> str:
    """Say in words what a weighted sum of rewards is.

    >>> describe_sum({"compressibility": 1.0, "recognition": 2.0})
    'compressibility + 2 × recognition'
    """
    return " + ".join(
        name_reward(name) if weight == 1 else f"{weight:g} × {name_reward(name)}" for name, weight in weights.items()
    )


def describe_total(contender: Contender) -> str:
    """Say in words what a run's mean reward is: the sum of its rewards as they are, which need not be the goal."""
    note = " (raw sum; training normalises each reward)" if normalises(contender) else ""
    return describe_weights(contender) + note


def normalises(contender: Contender) -> bool:
    """Return whether training normalises each of several rewards, so that their sum is not what is trained for."""
    tasks = list((contender.settings.get("tasks") or {}).values()) or [contender.settings]
    return any(task.get("combine") == "normalised" and len(task.get("rewards", ())) > 1 for task in tasks)


def list_differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the settings in which two runs differ, as `key first → other`, without places of this machine."""
    before, after = (dict(_leaves(settings)) for settings in (first, other))
    lines = []
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            shown = [_say_setting(withhold(values.get(key))) for values in (before, after)]
            lines.append(f"{key} {shown[0]} → {shown[1]}" if shown[0] != shown[1] else key)
    return lines


def _say_setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_say_setting, value)) or "none"
    return "none" if value is None or value == {} else str(value)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        key = f"{prefix}{name_reward(name)}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _goal(contender: Contender) -> Any:
    """What the training reward is: of one task its weights, of several also their names and shares."""
    if len(contender.tasks) == 1:
        return [dict(weights) for weights in contender.tasks.values()]
    return {task: (dict(weights), contender.shares[task]) for task, weights in contender.tasks.items()}


def _trained(contender: Contender) -> list[str]:
    return list(dict.fromkeys(name for weights in contender.tasks.values() for name in weights))


def _find_label(runs: Sequence[Contender], taken: Collection[str]) -> str:
    """Name a method by what the folders of its seeds have in common, by the folder above where that is nothing."""
    label = runs[0].name
    if len(runs) > 1:
        names = sorted(run.name for run in runs)
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(names[0], names[-1], strict=False))
        common = re.sub(r"([-_. ]?seed)?[-_. ]*\d*$", "", "".join(letter for letter, _ in pairs))
        above = runs[0].layout.root.resolve().parent
        label = common or ("runs" if str(above) == os.path.expanduser("~") else above.name)  # else the user's name
    numbered = (f"{label} ({number})" for number in count(2))
    return next(name for name in chain([label], numbered) if name not in taken)
