"""Several runs beside each other: the curve of each, their costs, and the reward whose price is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.compare.contenders import (
    Contender,
    check_rewards,
    describe_total,
    group_runs,
    list_differences,
)
from rlcm_cli.report.compare.curves import Curve, average_curves, trace_curve
from rlcm_cli.report.compare.evaluations import Ends, read_ends
from rlcm_cli.report.private import name_reward
from rlcm_cli.report.run.levels import WINDOW, Levels, find_levels
from rlcm_cli.store.reward_versions import comparable_rows
from rlcm_cli.store.run import read_metrics
from rlcm_cli.wording import command, count

Clock = Literal["wall", "cpu"]

COSTS: dict[str, tuple[str, ...]] = {
    "queries": ("samples",),
    "wall_seconds": ("sample_seconds", "score_seconds", "train_seconds"),
    "cpu_seconds": ("cpu_seconds",),
    "forwards": ("forwards",),
}
"""Cost → the keys of an iteration's metrics whose sum it is. Loading models and evaluating are no part of it."""


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seeds."""

    label: str
    runs: tuple[Contender, ...]
    curves: tuple[Curve, ...]
    """One a run."""
    levels: tuple[Levels, ...]
    """One a run."""
    mean: Curve
    """Over the seeds, to be looked at: where it reaches a reward is no mean of where the seeds do."""
    evaluations: tuple[Ends | None, ...]
    """One a run; None where there are not two of them."""


@dataclass(frozen=True)
class Comparison:
    """Methods with a common reward."""

    methods: tuple[Method, ...]
    reward: str
    """What the rewards are, for people."""
    window: int
    """Iterations that a reward is averaged over; in short runs fewer, which the notes tell."""
    costs: tuple[str, ...]
    """Those of `COSTS` that all runs have recorded, by the clock that was asked for."""
    target: float
    """The reward whose cost is asked for."""
    notes: tuple[str, ...]


def compare_runs(
    contenders: Sequence[Contender],
    *,
    component: str | None = None,
    window: int = WINDOW,
    clock: Clock = "wall",
    target: float | None = None,
) -> Comparison:
    """Compare runs by the training reward, or by one reward that all have scored.

    `target` None is the lowest of the runs' best rewards: the highest that every run has reached.
    Raises `ConfigError` where the runs cannot be compared, `MissingFileError` where one has not trained two
    iterations.
    """
    check_rewards(contenders, component)
    read = {contender.layout.root: _read_rows(contender) for contender in contenders}
    metrics, cut = (
        {root: rows for root, (rows, _) in read.items()},
        {root: before for root, (_, before) in read.items()},
    )
    costs, notes = _find_costs(contenders, metrics, clock)
    methods = []
    for label, runs in group_runs(contenders).items():
        rewards = [[_reward_of(row, component, run) for row in metrics[run.layout.root]] for run in runs]
        spent = [
            {cost: [sum(row[key] for key in COSTS[cost]) for row in metrics[run.layout.root]] for cost in costs}
            for run in runs
        ]
        curves = tuple(trace_curve(*of_run, window) for of_run in zip(rewards, spent, strict=True))
        lengths = [len(curve.rewards) for curve in curves]
        if len(set(lengths)) > 1:
            notes.append(
                f"{label}: its seeds have {', '.join(map(str, lengths))} iterations; the mean ends with the shortest"
            )
        methods.append(
            Method(
                label=label,
                runs=tuple(runs),
                curves=curves,
                levels=tuple(find_levels(of_run, window) for of_run in rewards),
                mean=average_curves(curves),
                evaluations=tuple(read_ends(run, component) for run in runs),
            )
        )
    notes += _tell_short_runs(methods, window)
    notes += [f"{method.label}: {line}" for method in methods[1:] if (line := _tell_settings(methods[0], method))]
    notes += [
        f"{run.name}: what is behind a reward changed after iteration {cut[run.layout.root]}, where its curve begins"
        for run in contenders
        if cut[run.layout.root]
    ]
    return Comparison(
        methods=tuple(methods),
        reward=name_reward(component) if component else describe_total(contenders[0]),
        window=window,
        costs=tuple(costs),
        target=min(levels.best for method in methods for levels in method.levels) if target is None else target,
        notes=tuple(notes),
    )


def _read_rows(contender: Contender) -> tuple[list[dict[str, Any]], int]:
    """Read the metrics since a reward last changed, and count the iterations before that."""
    root = contender.layout.root
    everything = read_metrics(contender.layout)
    rows = [dict(row) for row in comparable_rows(everything)]
    if len(rows) < 2:
        changed = " since a reward changed" if len(rows) < len(everything) else ""
        raise MissingFileError(
            f"{root}: has metrics of {count(len(rows), 'iteration')}{changed}, a curve needs two; go on with "
            f"`{command('loop', '--run', root)}`"
        )
    return rows, len(everything) - len(rows)


def _find_costs(
    contenders: Sequence[Contender], metrics: Mapping[Path, Sequence[Mapping[str, Any]]], clock: Clock
) -> tuple[list[str], list[str]]:
    """Find the costs that every iteration of every run has recorded, and say of the others why they are left out."""
    costs, notes = [], []
    for cost, keys in COSTS.items():
        if cost == {"wall": "cpu_seconds", "cpu": "wall_seconds"}[clock]:
            continue
        missing = [
            (run, key)
            for run in contenders
            for key in keys
            if any(row.get(key) is None for row in metrics[run.layout.root])
        ]
        if missing:
            run, key = missing[0]
            notes.append(f"no {cost.replace('_', ' ')}: the metrics of {run.name} lack {key}")
        else:
            costs.append(cost)
    if not costs:
        raise ConfigError(f"the runs have no cost in common to compare them by ({'; '.join(notes)}); train them again")
    return costs, notes


def _reward_of(row: Mapping[str, Any], component: str | None, contender: Contender) -> float:
    if component is None:
        return float(row["reward_mean"])
    known = {**row.get("monitored", {}), **row.get("rewards", {})}
    if component not in known:
        raise ConfigError(
            f"--reward {component}: {contender.layout.root} did not score it in iteration {row['iteration'] + 1}; "
            f"choose one that all iterations have, {', '.join(known)}"
        )
    return float(known[component])


def _tell_short_runs(methods: Sequence[Method], window: int) -> list[str]:
    return [
        f"{run.name}: has {len(curve.rewards)} iterations, so its rewards are means of {curve.window}"
        for method in methods
        for run, curve in zip(method.runs, method.curves, strict=True)
        if curve.window < window
    ]


def _tell_settings(first: Method, other: Method) -> str:
    found = list_differences(first.runs[0].settings, other.runs[0].settings)
    return f"settings that differ from those of {first.label}: {'; '.join(found)}" if found else ""
