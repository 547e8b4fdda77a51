"""The iterations of a run, whoever does their work: how many are left, what is monitored, what is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rlcm_cli.events import Event, FilesPruned, FlatFound, HackingFound, IterationTrained, Warned
from rlcm_cli.learning.signal import describe_rest
from rlcm_cli.runs.hacking import best_checkpoints, find_hacking, trained_progress
from rlcm_cli.runs.held_out import HeldOutRewards, find_flat
from rlcm_cli.runs.pruning import plan_pruning, prune
from rlcm_cli.runs.run import Run
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.reward_versions import changed_rewards, comparable_rows
from rlcm_cli.store.run import prune_checkpoints, prune_rollouts
from rlcm_cli.store.timings import Ending, note_planned


def run_iterations(
    run: Run,
    iterate: Callable[[], Iterator[Event]],
    evaluate: Callable[[int], Iterator[Event]],
    *,
    prunes: bool = True,
) -> Iterator[Event]:
    """Call `iterate` until the run's iterations are done, and `evaluate` on the first and the last checkpoint.

    Between them it is called on each `evaluate.every`-th, where the configuration has one, until the reward of the
    fixed images has not risen for `runtime.stop_when_flat` of them.

    `iterate` samples, scores and trains once, and yields the `IterationTrained`. Where a monitored reward falls while
    the trained one rises, warn, or stop if the configuration says so; the best checkpoint by each monitored reward and
    on the fixed images is never pruned. `prunes`: whether this process removes what is not to be kept.
    """
    layout, runtime, monitor, sampling = run.layout, run.config.runtime, run.config.monitor, run.config.sample
    first_iteration = latest_checkpoint(layout)
    held_out = HeldOutRewards(layout, run.config)
    if prunes:
        note_planned(layout, first_iteration, runtime.iterations)
        yield from prune_before(run)
    if 0 in layout.checkpoints():
        yield from evaluate(0)
    # Metrics are published before their checkpoint, so that one without it is of an iteration yet to be done.
    history = comparable_rows([row for row in read_metrics(layout) if row.iteration < first_iteration])
    alarms: dict[str, str] = {}
    every, drawn, flat = run.config.evaluate.every, set(), None
    rest = describe_rest(run.config, first_iteration)
    if rest:
        yield Warned(rest)
    while True:
        newest = latest_checkpoint(layout)
        if every and newest and newest % every == 0:
            yield from evaluate(newest)
            drawn.add(newest)
            if runtime.stop_when_flat and newest < runtime.iterations:
                flat = find_flat(held_out.reached(newest), run.config)
        found = find_hacking(history, monitor, trained_progress(history, run.config), sampling)
        for name in [name for name in found if name not in alarms]:
            yield HackingFound(latest_checkpoint(layout), name, found[name], stops=monitor.on_hacking == "stop")
        alarms = found
        ending: Ending = "hacking" if alarms and monitor.on_hacking == "stop" else "flat" if flat else ""
        if newest >= runtime.iterations or ending:
            break
        for event in iterate():
            yield event
            if isinstance(event, IterationTrained):
                if history and changed_rewards(history[-1].reward_revisions, event.metrics.reward_revisions):
                    history.clear()
                history.append(event.metrics)
        if prunes and runtime.keep_rollouts is not None:
            prune_rollouts(layout, runtime.keep_rollouts, latest_checkpoint(layout))
        kept = run.config.kept_checkpoints
        if prunes and kept is not None:
            best = {*best_checkpoints(history, monitor, sampling).values(), *held_out.best()}
            prune_checkpoints(layout, kept, best)
    last = latest_checkpoint(layout)
    if flat and ending == "flat":
        yield FlatFound(last, evaluations=flat[1], best=flat[0])
    if prunes and last < runtime.iterations:
        note_planned(layout, last, runtime.iterations, ending)
    monitored = best_checkpoints(history, monitor, sampling).values() if alarms else ()
    for number in sorted({last, *monitored} & {*layout.checkpoints()} - {0, *drawn}):
        yield from evaluate(number)


def prune_before(run: Run) -> Iterator[FilesPruned]:
    """Remove what a run has already and is not to keep, such as of a finished one that is called with other limits."""
    pruning = plan_pruning(run, run.config.runtime.keep_rollouts, run.config.kept_checkpoints)
    if pruning.bytes:
        prune(run.layout, pruning)
        yield FilesPruned([*pruning.rollouts], [*pruning.checkpoints], pruning.bytes)
