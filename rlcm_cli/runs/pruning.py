"""What a run no longer needs: images of trained rollouts and old checkpoints, chosen, measured and removed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlcm_cli.config import Config
from rlcm_cli.runs.hacking import best_checkpoints
from rlcm_cli.runs.held_out import best_held_out, read_held_out
from rlcm_cli.runs.run import Run
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.remote.remote_run import RemoteRun
from rlcm_cli.store.reward_versions import comparable_rows
from rlcm_cli.store.run import (
    note_pruned,
    old_checkpoints,
    old_rollouts,
    remove_checkpoints,
    remove_rollouts,
    stored_shards,
)

SHARD = re.compile(r"rollouts/(\d{6,9})/shard-\d+-of-\d+\.safetensors")
IN_CHECKPOINT = re.compile(r"checkpoints/(\d{6,9})/.+")


@dataclass(frozen=True)
class Pruning:
    """What can be removed of a run."""

    rollouts: Mapping[int, int]
    """Iteration → bytes of its shards."""
    checkpoints: Mapping[int, int]
    """Checkpoint → bytes of its files."""
    kept: Mapping[int, str]
    """Checkpoint that is old enough to be removed and stays → what it is."""

    @property
    def bytes(self) -> int:
        """Size of all of it."""
        return sum(self.rollouts.values()) + sum(self.checkpoints.values())


def plan_pruning(run: Run, keep_rollouts: int | None, keep_checkpoints: int | None) -> Pruning:
    """Choose what to remove of a run so that the newest rollouts and checkpoints stay; None keeps all.

    The first checkpoint stays, and so does the best by each monitored reward and on the fixed images. Raises the
    errors of `read_metrics` and `read_evaluation`: nothing is chosen by what cannot be read.
    """
    layout = run.layout
    shards = {
        iteration: sum(shard.stat().st_size for shard in stored_shards(layout, iteration))
        for iteration in _old_rollouts(layout, layout.iterations(), keep_rollouts)
    }
    chosen, kept = _choose_checkpoints(run, layout.checkpoints(), keep_checkpoints)
    sizes = {
        number: sum(file.stat().st_size for file in layout.checkpoint(number).rglob("*") if file.is_file())
        for number in chosen
    }
    return Pruning({number: size for number, size in shards.items() if size}, sizes, kept)


def prune(layout: RunLayout, pruning: Pruning) -> None:
    """Remove what was chosen, after it is noted as pruned; receipts, rewards, metrics and evaluations stay."""
    remove_rollouts(layout, [*pruning.rollouts])
    remove_checkpoints(layout, [*pruning.checkpoints])


def stage_pruning(remote: RemoteRun) -> None:
    """Fetch what `plan_remote_pruning` needs, but for evaluations: configuration, metrics, and what was pruned."""
    remote.fetch_config()
    newest, layout = remote.fetch_checkpoints(), remote.layout
    remote.fetch_files(layout.metrics(number) for number in range(1, (newest or 0) + 1))
    remote.fetch_files([layout.pruned])


def plan_remote_pruning(
    remote: RemoteRun, run: Run, keep_rollouts: int | None, keep_checkpoints: int | None
) -> Pruning:
    """Choose as `plan_pruning` does, of what the store has; `run`: that of the stage, with all evaluations."""
    shards = _add_up(remote.store.sizes("rollouts"), SHARD)
    newest = max(run.layout.checkpoints(), default=-1)
    listed = _add_up(remote.store.sizes("checkpoints"), IN_CHECKPOINT)
    checkpoints = {number: size for number, size in listed.items() if number <= newest}  # one above is being uploaded
    old = _old_rollouts(run.layout, sorted(shards), keep_rollouts)
    chosen, kept = _choose_checkpoints(run, sorted(checkpoints), keep_checkpoints)
    return Pruning(
        {number: shards[number] for number in old}, {number: checkpoints[number] for number in chosen}, kept
    )


def prune_remote(remote: RemoteRun, pruning: Pruning) -> None:
    """Remove what was chosen from the store, as `prune` does, and from the stage."""
    layout = remote.layout
    remove_stored(remote, [*pruning.rollouts], [*pruning.checkpoints])
    remove_rollouts(layout, [*pruning.rollouts])
    remove_checkpoints(layout, [number for number in pruning.checkpoints if layout.checkpoint(number).is_dir()])


def remove_stored(remote: RemoteRun, rollouts: Sequence[int] = (), checkpoints: Sequence[int] = ()) -> None:
    """Remove the shards of iterations, and checkpoints, from the store, after it says that they were pruned."""
    layout, store, stage = remote.layout, remote.store, remote.stage
    if not (rollouts or checkpoints):
        return
    note_pruned(layout, rollouts, checkpoints)
    content = layout.pruned.read_bytes()
    store.replace(stage.name(layout.pruned), content)
    stage.note(stage.name(layout.pruned), content)
    for iteration in rollouts:
        for shard in store.sizes(stage.name(layout.rollout(iteration))):
            if SHARD.fullmatch(shard):
                store.remove(shard)
    for number in checkpoints:
        remote.remove_checkpoint(number)


def find_best(layout: RunLayout, config: Config) -> dict[int, str]:
    """Return the checkpoints that are the best of a run by something, and by what."""
    rows = comparable_rows(read_metrics(layout))
    best = {
        number: f"the best by '{name}'"
        for name, number in best_checkpoints(rows, config.monitor, config.sample).items()
    }
    number = best_held_out(read_held_out(layout, config))
    return best if number is None else {**best, number: "the best on the held-out images"}


def _old_rollouts(layout: RunLayout, iterations: list[int], keep: int | None) -> list[int]:
    trained = layout.checkpoints()
    return [] if keep is None or not trained else old_rollouts(iterations, keep, trained[-1])


def _choose_checkpoints(run: Run, numbers: list[int], keep: int | None) -> tuple[list[int], dict[int, str]]:
    if keep is None:
        return [], {}
    # Those that the next rollout is drawn with are in use.
    old = old_checkpoints(numbers, max(keep, 1 + run.config.sample.staleness))
    best = find_best(run.layout, run.config) if old else {}
    return [n for n in old if n not in best], {n: best[n] for n in old if n in best}


def _add_up(sizes: Mapping[str, int], names: re.Pattern[str]) -> dict[int, int]:
    """Sum the bytes of the objects whose names fit a pattern, by the number in it."""
    total: dict[int, int] = {}
    for name, size in sizes.items():
        found = names.fullmatch(name)
        if found:
            total[int(found[1])] = total.get(int(found[1]), 0) + size
    return total
