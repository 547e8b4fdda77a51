"""How far a run is, as its files tell: read without a model and without torch, while others write them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from rlcm_cli.config import Config
from rlcm_cli.errors import MissingFileError
from rlcm_cli.runs.hacking import find_alarms
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.metrics import PHASES, IterationMetrics, read_iteration_metrics
from rlcm_cli.store.shards import is_published
from rlcm_cli.store.timings import Ending, read_ending, read_planned
from rlcm_cli.wording import count

RECENT = 10
"""Newest iterations by whose duration the time that is left is estimated."""
LEAST_STILL = 120.0
"""Seconds without a new file that say nothing yet."""
STILL_ITERATIONS = 5
"""Iterations in whose time a run that works has surely written a file; an evaluation takes that of several."""
LONG_STILL = 1800.0
"""Seconds, where it is not known how long an iteration takes: a large model is loaded and evaluated first."""


@dataclass(frozen=True)
class PhaseProgress:
    """What is being done."""

    name: str
    done: int | None = None
    """None: it cannot be seen from here."""
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class RunProgress:
    """How far a run is, as shown."""

    title: str
    iterations: int
    """That are wanted in all."""
    rewards: tuple[str, ...]
    """Those that are trained for."""
    monitored: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    """Of a joint run, whose rewards have no common scale."""
    rows: tuple[IterationMetrics, ...] = ()
    """Metrics of the iterations that are done, oldest first."""
    phase: PhaseProgress | None = None
    evaluated: tuple[int, ...] = ()
    """Checkpoints with which the fixed images were drawn."""
    warnings: tuple[str, ...] = ()
    changed: float | None = None
    """When a file was last written, in seconds since the epoch; None: by this process, now."""
    idle: bool = False
    """Nothing is begun after the newest checkpoint, with which the fixed images were drawn."""
    ended: Ending = ""
    """Why the run ended before all its iterations were done."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will come, unless the run is extended."""
        return self.idle and (self.done >= self.iterations or bool(self.ended))

    @property
    def done(self) -> int:
        """Iterations that are done."""
        return len(self.rows)

    @property
    def planned(self) -> int:
        """Iterations in all; a run may have been extended since its configuration was written."""
        return max(self.iterations, self.done)

    def series(self, read: Callable[[IterationMetrics], float | None]) -> list[float | None]:
        """Return one metric of each iteration, None where it was not measured."""
        return [None if (value := read(row)) is None or math.isnan(value) else value for row in self.rows]


def read_progress(layout: RunLayout, config: Config, title: str, before: RunProgress | None = None) -> RunProgress:
    """Read how far a run of a configuration is; of `before`, an earlier reading, the metrics that stay as they are.

    Raises `StoreError` for a damaged file.
    """
    checkpoints, evaluated = layout.checkpoints(), tuple(layout.evaluations())
    newest = checkpoints[-1] if checkpoints else None
    rows = _read_rows(layout, newest or 0, () if before is None else before.rows)
    names = [name for task in config.joint_tasks().values() for name in task.rewards]
    # What the newest call asked for, which the configuration of the run need not say.
    iterations = read_planned(layout, newest or 0) or config.runtime.iterations
    manifest = None if newest is None else _read_plan(layout, newest)
    ended = read_ending(layout, newest or 0)
    idle = (manifest is None or bool(ended)) and newest in evaluated  # the next rollout may have been sampled ahead
    phase = _find_phase(layout, config, newest, manifest, newest in evaluated, iterations)
    return RunProgress(
        title=title,
        iterations=iterations,
        rewards=tuple(dict.fromkeys(names)),
        monitored=tuple(name for name in config.monitor.rewards if name not in names),
        tasks=tuple(config.tasks),
        rows=rows,
        phase=None if idle and ended else phase,
        evaluated=evaluated,
        warnings=_read_warnings(layout),
        changed=_last_change(layout, newest),
        idle=idle,
        ended=ended,
    )


def add_alarms(progress: RunProgress, config: Config) -> RunProgress:
    """Return the progress of a run with a warning for each monitored reward by which it is hacked."""
    alarms = find_alarms(config, progress.rows)
    return replace(
        progress,
        warnings=(*progress.warnings, *(f"hacking: {message}" for message in alarms.values())),
        ended="hacking" if alarms and config.monitor.on_hacking == "stop" else progress.ended,
    )


def seconds_an_iteration(rows: Sequence[IterationMetrics]) -> float | None:
    """Estimate how long an iteration takes, on the clock, from the newest ones; None: nothing tells."""
    ends = [row.finished_at for row in rows[-RECENT - 1 :] if row.finished_at is not None]
    if len(ends) > 2:  # a single interval may hold a pause
        return statistics.median_low(end - start for start, end in pairwise(ends))
    phases = [seconds for row in rows[-1:] for phase in PHASES if (seconds := row.seconds(phase)) is not None]
    return sum(phases) if phases else None


def seconds_still(progress: RunProgress, now: float) -> float | None:
    """Return for how long a run has written nothing, where that is so long that it has probably stopped; else None.

    `now`: in seconds since the epoch, by the clock of the machine that writes the run's files.
    """
    if progress.changed is None or progress.finished:
        return None
    each = seconds_an_iteration(progress.rows)
    patience = LONG_STILL if each is None else max(LEAST_STILL, STILL_ITERATIONS * each)
    still = now - progress.changed
    return still if still > patience else None


def seconds_left(progress: RunProgress, now: float) -> float | None:
    """Estimate how long the iterations that are left will take; None: nothing tells. `now`: since the epoch."""
    left, each = progress.planned - progress.done, seconds_an_iteration(progress.rows)
    if each is None or not left:
        return None
    finished = progress.rows[-1].finished_at
    under_way = 0.0 if finished is None else now - finished
    return left * each - min(max(under_way, 0.0), each)  # clocks of two machines differ


def _read_rows(layout: RunLayout, newest: int, known: Sequence[IterationMetrics]) -> tuple[IterationMetrics, ...]:
    """Read the metrics that led to the newest checkpoint; what is above it is of an iteration yet to be done."""
    rows = list(known[:newest])
    with suppress(MissingFileError):  # on a file system that shows files late
        for number in range(len(rows) + 1, newest + 1):
            rows.append(read_iteration_metrics(layout, number))
    return tuple(rows)


def _read_plan(layout: RunLayout, iteration: int) -> RolloutManifest | None:
    with suppress(MissingFileError):
        return read_manifest(layout.manifest(iteration))
    return None


def _find_phase(
    layout: RunLayout,
    config: Config,
    newest: int | None,
    manifest: RolloutManifest | None,
    evaluated: bool,
    iterations: int,
) -> PhaseProgress | None:
    """Find what the iteration after the newest checkpoint lacks; `evaluated`: whether that checkpoint was."""
    if newest is None:
        return PhaseProgress("start")
    if manifest is None:
        ends = newest == 0 or newest >= iterations
        if ends and evaluated and newest:
            return None
        return PhaseProgress("evaluate" if ends and not evaluated else "sample")
    shards = manifest.shards
    number_of = len(shards)
    drawn = [number for number in range(number_of) if is_published(layout.shard(newest, number, number_of))]
    if len(drawn) < number_of:
        return PhaseProgress("sample", sum(shards[n][1] - shards[n][0] for n in drawn), shards[-1][1], "images")
    folders = list((layout.rollout(newest) / "rewards").glob("*"))
    scored = sum(
        is_published(layout.reward_shard(newest, folder.name, number, number_of))
        for folder in folders
        for number in range(number_of)
    )
    wanted = number_of * len(config.reward_names())
    return PhaseProgress("score", scored, wanted, "shards of rewards") if scored < wanted else PhaseProgress("train")


def _read_warnings(layout: RunLayout) -> tuple[str, ...]:
    damaged = [file for file in layout.quarantine.rglob("*") if file.is_file()] if layout.quarantine.is_dir() else []
    if not damaged:
        return ()
    return (f"{count(len(damaged), 'file')} in {layout.quarantine.name}/, moved away as damaged",)


def _last_change(layout: RunLayout, newest: int | None) -> float | None:
    folder = layout.rollout(newest or 0)
    places = [layout.config, layout.manifest(newest or 0), layout.metrics(newest or 0), layout.root / "evaluations"]
    places += [folder, *(folder / "rewards").glob("*"), receipt_path(layout.evaluation(newest or 0))]
    return max((time for place in places if (time := _modified(place)) is not None), default=None)


def _modified(path: Path) -> float | None:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None
