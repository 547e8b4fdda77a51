"""Several runs side by side: the curve of each, their costs, and what it costs to reach a reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.compare.curves import Curve, average_curves, trace_curve
from rlcm_cli.report.compare.evaluations import HeldOutLevels, read_held_out_levels
from rlcm_cli.report.compare.runs import (
    ComparedRun,
    SettingRow,
    check_comparable,
    describe_held_out,
    describe_total,
    group_runs,
    list_differences,
)
from rlcm_cli.report.private import name_reward, withhold_text
from rlcm_cli.report.run.levels import WINDOW, Levels, find_levels
from rlcm_cli.runs.hacking import advise_checkpoint
from rlcm_cli.runs.held_out import has_deviations
from rlcm_cli.store.metrics import PHASES, IterationMetrics, read_metrics
from rlcm_cli.store.reward_versions import comparable_rows
from rlcm_cli.wording import command, count

Clock = Literal["wall", "cpu"]

COSTS: dict[str, tuple[str, ...]] = {
    "queries": ("samples",),
    "wall_seconds": tuple(f"{phase}_seconds" for phase in PHASES),
    "cpu_seconds": ("cpu_seconds",),
    "forwards": ("forwards",),
}
"""Cost → the metrics of an iteration whose sum it is. Loading models and evaluating are not part of it."""


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seeds."""

    label: str
    runs: tuple[ComparedRun, ...]
    curves: tuple[Curve, ...]
    """One a run."""
    levels: tuple[Levels, ...]
    """One a run."""
    mean: Curve
    """Over the seeds, only to be drawn: where it reaches a reward is not the mean of where the seeds do."""
    held_out: tuple[HeldOutLevels | None, ...]
    """One a run; None where there are not two evaluations."""


@dataclass(frozen=True)
class Comparison:
    """Methods with a common reward."""

    methods: tuple[Method, ...]
    reward: str
    """What the rewards are, as shown."""
    held_out: str
    """What the rewards of held-out images are, as shown."""
    window: int
    """Iterations that a reward is averaged over; in short runs fewer, which the notes tell."""
    costs: tuple[str, ...]
    """Those of `COSTS` that all runs have recorded, by the clock that was asked for."""
    target: float
    """The reward whose cost is asked for."""
    target_given: bool
    """Whether it was asked for; else it is the highest that every run has reached."""
    settings: tuple[SettingRow, ...]
    """Those that differ between the methods."""
    notes: tuple[str, ...]


def compare_runs(
    compared: Sequence[ComparedRun],
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
    check_comparable(compared, component)
    metrics, cut = {}, {}
    for run in compared:
        metrics[run.layout.root], cut[run.layout.root] = _read_metrics(run)
    costs, notes = _find_costs(compared, metrics, clock)
    # Sums in different units are no comparison; the rewards by themselves are.
    total = len({tuple(has_deviations(run.config).items()) for run in compared}) == 1
    methods = []
    for label, runs in group_runs(compared).items():
        rewards = [[_reward_of(row, component, run) for row in metrics[run.layout.root]] for run in runs]
        spent = [{cost: [cost_of(row, cost) for row in metrics[run.layout.root]] for cost in costs} for run in runs]
        curves = tuple(trace_curve(*of_run, window) for of_run in zip(rewards, spent, strict=True))
        methods.append(
            Method(
                label=label,
                runs=tuple(runs),
                curves=curves,
                levels=tuple(find_levels(of_run, window) for of_run in rewards),
                mean=average_curves(curves),
                held_out=tuple(read_held_out_levels(run, component, total=total) for run in runs),
            )
        )
    notes += [*_note_lengths(methods), *_note_short_runs(methods, window), *_note_models(methods)]
    notes += [*_note_held_out(methods), *_note_revisions(methods), *_note_alarms(compared, metrics)]
    notes += [
        f"{run.name}: its curve begins after iteration {cut[run.layout.root]}, when the code, weights or server of a "
        "reward changed"
        for run in compared
        if cut[run.layout.root]
    ]
    if component is None and not total:
        notes.append(
            "no sum of the held-out rewards: only some runs have it in standard deviations (combine differs); compare "
            "reward by reward"
        )
    return Comparison(
        methods=tuple(methods),
        reward=name_reward(component) if component else describe_total(compared[0]),
        held_out=name_reward(component) if component else describe_held_out(compared[0]),
        window=window,
        costs=tuple(costs),
        target=min(levels.best for method in methods for levels in method.levels) if target is None else target,
        target_given=target is not None,
        settings=tuple(list_differences({method.label: method.runs[0].settings for method in methods})),
        notes=tuple(notes),
    )


def cost_of(row: IterationMetrics, cost: str) -> float:
    """Return what an iteration cost, of which all metrics are known."""
    return float(sum(getattr(row, name) for name in COSTS[cost]))


def _read_metrics(run: ComparedRun) -> tuple[list[IterationMetrics], int]:
    """Read the metrics since a reward last changed, and count the iterations before that."""
    root = run.layout.root
    everything = read_metrics(run.layout)
    rows = comparable_rows(everything)
    if len(rows) < 2:
        changed = " since a reward changed" if len(rows) < len(everything) else ""
        raise MissingFileError(
            f"{root}: has metrics of {count(len(rows), 'iteration')}{changed}, a curve needs two; resume it with "
            f"`{command('loop', '--run', root)}`"
        )
    return rows, len(everything) - len(rows)


def _find_costs(
    compared: Sequence[ComparedRun], metrics: Mapping[Path, Sequence[IterationMetrics]], clock: Clock
) -> tuple[list[str], list[str]]:
    """Find the costs that every iteration of every run has recorded, and say of the others why they are left out."""
    costs, notes = [], []
    for cost, keys in COSTS.items():
        if cost == {"wall": "cpu_seconds", "cpu": "wall_seconds"}[clock]:
            continue
        missing = [
            (run, key)
            for run in compared
            for key in keys
            if any(getattr(row, key) is None for row in metrics[run.layout.root])
        ]
        if missing:
            run, key = missing[0]
            notes.append(f"no {cost.replace('_', ' ')}: the metrics of {run.name} lack {key}")
        else:
            costs.append(cost)
    if not costs:
        raise ConfigError(f"the runs have no cost in common to compare them by ({'; '.join(notes)}); train them again")
    return costs, notes


def _reward_of(row: IterationMetrics, component: str | None, run: ComparedRun) -> float:
    if component is None:
        return row.reward_mean
    if component not in row.scored:
        raise ConfigError(
            f"--reward {component}: {run.layout.root} did not score it in iteration {row.checkpoint}; choose one that "
            f"all iterations have, {', '.join(row.scored)}"
        )
    return row.scored[component]


def _note_short_runs(methods: Sequence[Method], window: int) -> list[str]:
    return [
        f"{run.name}: has {len(curve.rewards)} iterations, so its rewards are means of {curve.window}"
        for method in methods
        for run, curve in zip(method.runs, method.curves, strict=True)
        if curve.window < window
    ]


def _note_lengths(methods: Sequence[Method]) -> Iterator[str]:
    """Say where runs have different numbers of iterations: best and final are of different amounts of training."""
    lengths = {method.label: [len(curve.rewards) for curve in method.curves] for method in methods}
    for label, of_seeds in lengths.items():
        if len(set(of_seeds)) > 1:
            shown = ", ".join(map(str, of_seeds))
            yield (
                f"{label}: its seeds have {shown} iterations, so their best and final rewards are of different "
                "amounts of training; the mean curve ends with the shortest"
            )
    if len({max(of_seeds) for of_seeds in lengths.values()}) > 1:
        shown = ", ".join(f"{label} {max(of_seeds)}" for label, of_seeds in lengths.items())
        yield (
            f"the methods were trained for different numbers of iterations ({shown}): a shorter run's best and final "
            "rewards may still have been rising"
        )


def _note_models(methods: Sequence[Method]) -> Iterator[str]:
    models = {method.label: withhold_text(method.runs[0].config.model.name) for method in methods}
    if len({method.runs[0].config.model.name for method in methods}) > 1:
        shown = ", ".join(f"{label} {model}" for label, model in models.items())
        yield f"the methods fine-tune different models ({shown}): their rewards differ before any training"


def _note_held_out(methods: Sequence[Method]) -> Iterator[str]:
    """Say which runs lack held-out images, and which methods have others: their means are of other images."""
    lacking = [
        run.name
        for method in methods
        for run, found in zip(method.runs, method.held_out, strict=True)
        if found is None
    ]
    if lacking:
        every = len(lacking) == sum(len(method.runs) for method in methods)
        yield (
            f"no held-out rewards{'' if every else ' of ' + ', '.join(lacking)}: they need two evaluations to compare"
        )
    known = {
        method.label: found for method in methods if (found := next(filter(None, method.held_out), None)) is not None
    }
    if len({(found.counts, found.kept_out) for found in known.values()}) > 1:
        shown = ", ".join(
            f"{label} {count(found.counts[1], 'image')} of {count(found.counts[0], 'prompt')}, "
            f"{len(found.kept_out)} of them kept out of training"
            for label, found in known.items()
        )
        yield f"the held-out images of the methods differ ({shown})"


def _note_revisions(methods: Sequence[Method]) -> Iterator[str]:
    """Say which rewards were given by other code, weights or servers in another run."""
    seen: dict[str, tuple[str, str]] = {}
    for method in methods:
        for run, found in zip(method.runs, method.held_out, strict=True):
            for reward, digest in found.revisions.items() if found else ():
                name, first = seen.setdefault(reward, (run.name, digest))
                if digest != first:
                    yield (
                        f"{run.name}: the code, weights or server of {name_reward(reward)} are not those of {name}, "
                        "so its values may be another quantity"
                    )


def _note_alarms(compared: Sequence[ComparedRun], metrics: Mapping[Path, Sequence[IterationMetrics]]) -> Iterator[str]:
    """Say which runs' training reward is being hacked: their best checkpoint is not the one to use."""
    for run in compared:
        advised = advise_checkpoint(metrics[run.layout.root], run.config)
        if advised:
            number, name = advised
            yield (
                f"{run.name}: the alarm of {name_reward(name)} says that its training reward is being hacked; "
                f"`--checkpoint best` is {number} there"
            )
