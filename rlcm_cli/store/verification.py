"""What is wrong with a run: damaged, foreign, misplaced and missing files, a line each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from rlcm_cli.errors import ForeignFileError, StoreError
from rlcm_cli.store.atomic import TEMPORARY_SUFFIX
from rlcm_cli.store.checkpoint import check_checkpoint
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.identity import read_config_record
from rlcm_cli.store.inputs import read_inputs
from rlcm_cli.store.layout import RunLayout, receipt_path, shard_name
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.metrics import read_iteration_metrics
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.reward_versions import current_version
from rlcm_cli.store.rollouts import check_rewards_place, check_shard
from rlcm_cli.store.run import Pruned, read_pruned
from rlcm_cli.store.shards import read_arrays, read_receipt
from rlcm_cli.store.timings import read_timings
from rlcm_cli.store.votes import list_voters, read_vote, vote_files

REWARDS = "rewards"
MOST_MISSING = 20
"""Lines on files of one kind that are missing."""


def verify_run(layout: RunLayout) -> list[str]:
    """Check every file of a run; return one line per fault.

    What was pruned, moved into quarantine, or is not made yet is not a fault.
    """
    faults = _fault_of(partial(read_config_record, layout))
    damaged = _fault_of(partial(read_pruned, layout))
    pruned = Pruned() if damaged else read_pruned(layout)
    newest = _newest(layout)
    faults += damaged
    faults += _verify_inputs(layout)
    faults += _verify_checkpoints(layout, newest, pruned)
    faults += _verify_metrics(layout, newest)
    planned = layout.iterations()
    for iteration in sorted([*planned, *_missing(range(newest), planned)]):
        faults += _verify_rollout(layout, iteration, newest, pruned)
    for number in layout.evaluations():
        faults += _fault_of(partial(read_evaluation, layout, number))
    for folder in _entries(layout.root / REWARDS):
        faults += _fault_of(partial(current_version, layout, folder.name))
    for voter in list_voters(layout):
        for file in vote_files(layout, voter):
            faults += _fault_of(partial(read_vote, layout, file))
    return faults + list(_find_misplaced(layout, newest))


def _verify_inputs(layout: RunLayout) -> list[str]:
    path = layout.inputs
    if path.exists() or not layout.config.exists() or _is_set_aside(layout, path):
        return _fault_of(partial(read_inputs, layout))
    return [f"{path}: is gone, though each run has it from its start; copy it from a backup"]


def _newest(layout: RunLayout) -> int:
    """Return the last checkpoint that is there or that something else tells of; -1: there was none yet."""
    drawers = [read_manifest(layout.manifest(number)).policy.checkpoint for number in _sound_plans(layout)]
    made = [*layout.checkpoints(), *layout.evaluations(), *drawers]
    # A checkpoint whose number no metrics lead to is not of this run, and says nothing of what is missing.
    highest = max([*layout.measured(), *layout.iterations(), 0])
    return max([number for number in made if number <= highest], default=-1)


def _sound_plans(layout: RunLayout) -> list[int]:
    return [number for number in layout.iterations() if not _fault_of(partial(read_manifest, layout.manifest(number)))]


def _missing(numbers: range, there: Collection[int]) -> list[int]:
    """List the first numbers that are not there; a single misplaced file may have any number."""
    known = {*there}
    return list(islice((number for number in numbers if number not in known), MOST_MISSING))


def _verify_checkpoints(layout: RunLayout, newest: int, pruned: Pruned) -> Iterator[str]:
    there = layout.checkpoints()
    for number in there:
        yield from _fault_of(partial(check_checkpoint, layout, number))
    for number in _missing(range(newest + 1), [*there, *pruned.checkpoints]):
        path = layout.checkpoint(number)
        if (layout.root / "checkpoints").exists() and not _is_set_aside(layout, path):
            yield f"{path}: is gone, though what follows it is there; copy it from a backup, or leave it"


def _verify_metrics(layout: RunLayout, newest: int) -> Iterator[str]:
    there = layout.measured()
    for number in there:
        yield from _fault_of(partial(read_iteration_metrics, layout, number))
    for number in _missing(range(1, newest + 1), there):
        if not _is_set_aside(layout, layout.metrics(number)):
            yield f"{layout.metrics(number)}: is gone, though its iteration was trained; copy it from a backup"


def _verify_rollout(layout: RunLayout, iteration: int, newest: int, pruned: Pruned) -> Iterator[str]:
    folder, path = layout.rollout(iteration), layout.manifest(iteration)
    if not path.exists():
        if not (_is_set_aside(layout, path) or _is_set_aside(layout, folder)):
            yield f"{path}: is gone, though its iteration was trained; copy it from a backup"
        return
    damaged = _fault_of(partial(read_manifest, path))
    if damaged:
        yield from damaged
        return
    manifest = read_manifest(path)
    count = len(manifest.shards)
    sound = set()
    for number in range(count):
        shard = layout.shard(iteration, number, count)
        if receipt_path(shard).exists():
            if iteration in pruned.rollouts and not shard.exists():
                continue
            faults = _fault_of(partial(check_shard, layout, manifest, number))
            yield from faults
            if not faults:
                sound.add(shard.name)
        elif iteration < newest and not _is_set_aside(layout, shard):
            yield f"{receipt_path(shard)}: is gone, though its iteration was trained; copy it from a backup"
    for receipt in sorted(folder.glob(f"{REWARDS}/*/shard-*.json")):
        record = receipt.with_suffix(".safetensors")
        yield from _fault_of(partial(_check_rewards, layout, manifest, record, sound))
    for phase in ("sample", "score"):
        yield from _fault_of(partial(read_timings, layout, iteration, phase, count))


def _check_rewards(layout: RunLayout, manifest: RolloutManifest, path: Path, sound: Collection[str]) -> None:
    arrays, fields = read_arrays(path, "rewards")
    check_rewards_place(fields, manifest, path)
    numbers = [
        number for number in range(len(manifest.shards)) if shard_name(number, len(manifest.shards)) == path.name
    ]
    start, stop = manifest.shards[numbers[0]] if numbers else (0, 0)
    shard = layout.shard(manifest.iteration, numbers[0], len(manifest.shards)) if numbers else path
    scored = arrays["sample_index"].tolist()
    if not numbers or scored != sorted({*scored}) or not {*scored} <= {*range(start, stop)}:
        raise _foreign(path, "scores samples of another shard")
    # Of a shard that is at fault itself, its rewards are not to blame.
    if shard.name in sound and read_receipt(shard).sha256 != fields["shard_sha256"]:
        raise _foreign(path, "scores another shard than the one there")


def _find_misplaced(layout: RunLayout, newest: int) -> Iterator[str]:
    """Find what lies where the format has something else, or nothing."""
    numbered = {
        "checkpoints": {layout.checkpoint(number).name for number in layout.checkpoints()},
        "evaluations": {layout.evaluation(number).parent.name for number in layout.evaluations()},
        "metrics": {layout.metrics(number).name for number in layout.measured()},
        "rollouts": {layout.rollout(number).name for number in layout.iterations()},
    }
    for name, known in numbered.items():
        folder = layout.root / name
        for path in _entries(folder):
            if path.name not in known:
                if not _is_unfinished(layout, path, newest):
                    yield _misplaced(path)
            elif name == "rollouts":
                yield from _find_misplaced_shards(layout, int(path.name))
            elif name == "evaluations":
                record = layout.evaluation(int(path.name))
                rescored = [*path.glob("rescored-?????.json"), *path.glob("rescored-?????.safetensors")]
                own = (record, receipt_path(record), *rescored)
                yield from (_misplaced(file) for file in _entries(path) if file not in own)


def _is_unfinished(layout: RunLayout, folder: Path, newest: int) -> bool:
    """Return whether a killed process may have left it so: empty, or the newest evaluation without its receipt."""
    unfinished = layout.evaluation(max(newest, 0))
    return folder.is_dir() and all(file == unfinished for file in _entries(folder))


def _find_misplaced_shards(layout: RunLayout, iteration: int) -> Iterator[str]:
    if _fault_of(partial(read_manifest, layout.manifest(iteration))):
        return
    count = len(read_manifest(layout.manifest(iteration)).shards)
    names = {
        name
        for number in range(count)
        for name in (shard_name(number, count), receipt_path(Path(shard_name(number, count))).name)
    }
    folder = layout.rollout(iteration)
    for path in _entries(folder):
        if path.name == REWARDS and path.is_dir():
            for of_reward in _entries(path):
                if not of_reward.is_dir():
                    yield _misplaced(of_reward)
                    continue
                for file in _entries(of_reward):
                    if file.name not in names or not file.exists():
                        yield _misplaced(file)
        # A link that leads nowhere is there, and is not a file that is yet to be made.
        elif not path.exists() or (path.name not in names and path != layout.manifest(iteration)):
            yield _misplaced(path)


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.endswith(TEMPORARY_SUFFIX))


def _misplaced(path: Path) -> str:
    return f"{path}: does not belong there; {REMEDY.format(path=path).partition(' and ')[0]}"


def _foreign(path: Path, fault: str) -> StoreError:
    return ForeignFileError(f"{path}: {fault}; {REMEDY.format(path=path)}")


def _is_set_aside(layout: RunLayout, path: Path) -> bool:
    return (layout.quarantine / path.relative_to(layout.root)).exists()


def _fault_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except StoreError as error:
        return [str(error)]
    return []
