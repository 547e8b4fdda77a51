"""What each phase needs of a remote run, fetched into its stage; and events followed by what they have published."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

from rlcm_cli.config import Tracker
from rlcm_cli.events import Event
from rlcm_cli.processes.worker import Worker
from rlcm_cli.runs.choosing import choose_checkpoint
from rlcm_cli.runs.hacking import best_checkpoints
from rlcm_cli.runs.held_out import HeldOutRewards
from rlcm_cli.runs.pruning import remove_stored
from rlcm_cli.runs.run import Run, open_run
from rlcm_cli.store.checkpoint import MARKER_FILE
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.remote.publishing import Publisher, publishing
from rlcm_cli.store.remote.remote_run import RemoteRun
from rlcm_cli.store.reward_versions import split_scores_folder
from rlcm_cli.store.run import old_checkpoints, old_rollouts

RESCORED = re.compile(r"evaluations/(\d+)/rescored-\d+\.safetensors")


def stage_start(remote: RemoteRun) -> int | None:
    """Fetch the configuration and the newest checkpoint; return its number, None where there is none."""
    remote.fetch_config()
    newest = remote.fetch_checkpoints()
    if newest is not None:
        remote.fetch_checkpoint(newest)
    return newest


def stage_newest(remote: RemoteRun) -> int | None:
    """Fetch what `stage_start` does, and the checkpoint that draws the newest one's rollout; return the newest."""
    newest = stage_start(remote)
    if newest is not None:
        drawer = open_run(remote.layout.root).config.sample.drawing_checkpoint(newest)
        if drawer != newest:
            remote.fetch_checkpoint(drawer)
    return newest


def stage_sampling(remote: RemoteRun) -> None:
    """Fetch what `sample` needs: which shards of the newest plan are there.

    Raises `CorruptFileError` for one that was cut and is not whole here.
    """
    newest = stage_newest(remote)
    if newest is not None:
        manifest = remote.fetch_rollout(newest, _none)
        if manifest is not None:
            count = len(manifest.shards)
            remote.repair_uploads([remote.layout.shard(newest, number, count) for number in range(count)])


def stage_scoring(
    remote: RemoteRun, worker: Worker, iterations: Sequence[int] = (), *, everything: bool = False
) -> None:
    """Fetch the worker's shards of the wanted rollouts, of all, or of the newest, and which rewards they have."""
    remote.fetch_config()
    newest = remote.fetch_checkpoints()
    if everything and not iterations:
        iterations = _rollouts(remote)
    elif not iterations:
        iterations = [] if newest is None else [newest]
    _fetch_versions(remote)
    for iteration in iterations:
        manifest = remote.fetch_rollout(iteration, worker.takes)
        if manifest is not None:
            folder = remote.stage.name(remote.layout.rollout(iteration) / "rewards")
            remote.fetch_rewards(manifest, remote.store.folders(folder), _none)


def stage_training(remote: RemoteRun) -> None:
    """Fetch what `train` and `loop` need: the newest checkpoint, its rollout with rewards, and all metrics."""
    newest = stage_newest(remote)
    if newest is None:
        return
    _fetch_versions(remote)
    layout = remote.layout
    remote.fetch_files(layout.metrics(number) for number in range(1, newest + 1))
    layout.metrics_jsonl.unlink(missing_ok=True)  # derived from them at the next iteration
    remote.fetch_files(layout.tracked(name) for name in get_args(Tracker))
    manifest = remote.fetch_rollout(newest, _all)
    if manifest is None:
        return
    wanted = {spec.directory for spec in open_run(layout.root).reward_specs().values()}
    stored = remote.store.folders(remote.stage.name(layout.rollout(newest) / "rewards"))
    later = {folder for folder in stored if split_scores_folder(folder)[0] in wanted}
    remote.fetch_rewards(manifest, sorted(wanted | later), _all)
    shards = range(len(manifest.shards))
    remote.fetch_files(layout.timing(newest, phase, number) for phase in ("sample", "score") for number in shards)


def stage_loop(remote: RemoteRun) -> None:
    """Fetch what `loop` needs: what `train` does, the evaluations, and the checkpoints that it may evaluate."""
    stage_training(remote)
    stage_evaluations(remote)
    remote.fetch_files([remote.layout.pruned])  # to which this machine's is added
    if remote.layout.config.exists():
        config = open_run(remote.layout.root).config
        best = best_checkpoints(read_metrics(remote.layout), config.monitor, config.sample)
        for number in {0, *best.values()}:
            remote.fetch_checkpoint(number)


def stage_evaluating(remote: RemoteRun, checkpoints: Sequence[str], *, later: bool = False) -> None:
    """Fetch checkpoints, named as `choose_checkpoint` reads them, by default the newest, and their evaluations.

    `later`: stored images get a reward, which takes all evaluations, and those checkpoints only that have none.
    """
    newest = stage_start(remote)
    _fetch_versions(remote)
    layout = remote.layout
    named = [text for text in checkpoints if not text.isdecimal()]
    if later or named:
        remote.fetch_files(layout.metrics(number) for number in range(1, (newest or 0) + 1))
        stage_evaluations(remote)
    config = open_run(layout.root).config if checkpoints else None
    chosen = [choose_checkpoint(layout, config, text).number for text in checkpoints if config is not None]
    chosen = chosen or ([] if newest is None or (later and layout.evaluations()) else [newest])
    remote.fetch_records(layout.evaluation(number) for number in chosen)
    _fetch_rescored(remote, chosen)
    for number in chosen:
        if not (later and number in layout.evaluations()):
            remote.fetch_checkpoint(number)


def stage_evaluations(remote: RemoteRun) -> None:
    """Fetch all evaluations."""
    numbers = {*_numbers(remote.store.folders("evaluations")), *remote.layout.evaluations()}
    remote.fetch_records(remote.layout.evaluation(number) for number in numbers)
    _fetch_rescored(remote, numbers)


def stage_report(remote: RemoteRun) -> None:
    """Fetch what reports and comparisons need: newest checkpoint, metrics and evaluations."""
    newest = stage_start(remote)
    remote.fetch_files(remote.layout.metrics(number) for number in range(1, (newest or 0) + 1))
    stage_evaluations(remote)


def stage_progress(remote: RemoteRun) -> None:
    """Fetch what shows the progress of a run: metrics and receipts, no weights and no images."""
    remote.fetch_config()
    newest, layout = remote.fetch_checkpoints(), remote.layout
    if newest is None:
        return
    metrics = [layout.metrics(number) for number in range(1, newest + 1)]
    remote.fetch_files([*(file for file in metrics if not file.exists()), layout.planned(newest)])
    folders = _numbers(remote.store.folders("evaluations"))
    remote.fetch_records((layout.evaluation(number) for number in folders), lambda _: False)
    _fetch_rewards(remote, newest, _none)


def stage_scores(remote: RemoteRun) -> None:
    """Fetch what an HTML report needs: what `stage_report` does, and all rewards; no images of rollouts."""
    stage_report(remote)
    for iteration in _numbers(remote.store.folders("rollouts")):
        _fetch_rewards(remote, iteration, _all)


def stage_voting(remote: RemoteRun, iterations: Sequence[int] = ()) -> None:
    """Fetch what a vote needs: evaluations, rewards, votes, and the images of rollouts, by default of the newest."""
    stage_scores(remote)
    for iteration in iterations or _rollouts(remote)[-1:]:
        remote.fetch_rollout(iteration, _all)
    remote.fetch_files(remote.stage.path(name) for name in remote.store.sizes("votes"))


def stage_inspection(
    remote: RemoteRun, *, path: str = "", whole: bool = False, images_of: Sequence[int] | None = None
) -> None:
    """Fetch plans, receipts, metrics and evaluations; all records and checkpoints too, or some iterations' images.

    `path`: the only file or folder of the run that is wanted. `images_of`: empty means the newest rollout's.
    """
    if path:
        remote.fetch_path(path)
        return
    stage_report(remote)
    layout = remote.layout
    for number in layout.checkpoints() if whole else ():
        remote.fetch_checkpoint(number)
    iterations = _rollouts(remote)
    shown = images_of if images_of is None else (images_of or iterations[-1:])
    for iteration in iterations:
        wanted = _all if whole or (shown is not None and iteration in shown) else _none
        manifest = remote.fetch_rollout(iteration, wanted)
        if manifest is not None:
            folder = remote.stage.name(layout.rollout(iteration) / "rewards")
            remote.fetch_rewards(manifest, remote.store.folders(folder), wanted)


def _fetch_rewards(remote: RemoteRun, iteration: int, wanted: Callable[[int], bool]) -> None:
    """Fetch the plan of a rollout and the receipts of its shards and rewards, the wanted shards' rewards too."""
    manifest = remote.fetch_rollout(iteration, _none)
    if manifest is not None:
        folder = remote.stage.name(remote.layout.rollout(iteration) / "rewards")
        remote.fetch_rewards(manifest, remote.store.folders(folder), wanted)


def _fetch_rescored(remote: RemoteRun, checkpoints: Collection[int]) -> None:
    """Fetch what later versions of rewards gave to the images of evaluations."""
    names = {name: RESCORED.fullmatch(name) for name in remote.store.sizes("evaluations")}
    found = [name for name, match in names.items() if match and int(match[1]) in checkpoints]
    remote.fetch_records(remote.stage.path(name) for name in found)


def _fetch_versions(remote: RemoteRun) -> None:
    """Fetch which versions of its rewards the run has been scored with."""
    remote.fetch_files(remote.stage.path(name) for name in remote.store.sizes("rewards"))


def follow_published(events: Iterable[Event], work: Callable[[], None]) -> Iterator[Event]:
    """Yield a phase's events, and have `work` publish in the background what each of them has left in the stage."""
    with publishing(work) as background:
        for event in events:
            background.notify()
            yield event
    work()


@dataclass
class LoopPublisher:
    """Publishes a loop's files, and prunes in the store what its settings let go of, wherever that was made."""

    run: Run
    publisher: Publisher
    _trained: int = -1
    """Newest checkpoint when the store was pruned last."""
    _pruned: set[int] = field(default_factory=set)
    _held_out: HeldOutRewards = field(init=False)

    def __post_init__(self) -> None:
        self._held_out = HeldOutRewards(self.run.layout, self.run.config)

    def __call__(self) -> None:
        """Publish and prune."""
        self.publisher.publish()
        layout, stage = self.run.layout, self.publisher.remote.stage
        numbers = [n for n in layout.checkpoints() if stage.synced(stage.name(layout.checkpoint(n) / MARKER_FILE))]
        if numbers and numbers[-1] != self._trained:
            self._trained = numbers[-1]
            self._prune_rollouts()
            self._prune_checkpoints()

    def _prune_rollouts(self) -> None:
        keep, remote = self.run.config.runtime.keep_rollouts, self.publisher.remote
        if keep is None:
            return
        old = set(old_rollouts(_numbers(remote.store.folders("rollouts")), keep, self._trained)) - self._pruned
        remove_stored(remote, rollouts=sorted(old))
        self._pruned |= old

    def _prune_checkpoints(self) -> None:
        config, remote = self.run.config, self.publisher.remote
        kept = config.kept_checkpoints
        if kept is None:
            return
        monitored = best_checkpoints(read_metrics(self.run.layout), config.monitor, config.sample).values()
        protected = {*monitored, *self._held_out.best()}
        listed = [number for number in _numbers(remote.store.folders("checkpoints")) if number <= self._trained]
        remove_stored(remote, checkpoints=old_checkpoints(listed, kept, protected))


def _rollouts(remote: RemoteRun) -> list[int]:
    """List the iterations that have a plan in the store, or had one when they were fetched."""
    return sorted({*_numbers(remote.store.folders("rollouts")), *remote.layout.iterations()})


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(name) for name in names if name.isdecimal())


def _all(_: int) -> bool:
    return True


def _none(_: int) -> bool:
    return False
