"""The run directory as a whole: its configuration, and what is pruned from it."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rlcm_cli.store.atomic import publish_bytes, remove_folder, remove_stale, replace_bytes
from rlcm_cli.store.identity import identify_run, read_config_record
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout, receipt_path
from rlcm_cli.store.reading import Record, read_object

Number = Annotated[int, Field(ge=0)]


class Pruned(Record):
    """What was removed on purpose, so that nobody takes it for lost."""

    format_version: int = FORMAT_VERSION
    rollouts: tuple[Number, ...] = ()
    """Iterations whose shards were removed."""
    checkpoints: tuple[Number, ...] = ()


def publish_config(layout: RunLayout, config_json: str, versions: Mapping[str, str]) -> None:
    """Write the configuration of a run that has none yet, with the identity that it gives the run."""
    config = json.loads(config_json)
    record = {
        "format_version": FORMAT_VERSION,
        "run": identify_run(config),
        "config": config,
        "versions": dict(versions),
    }
    publish_bytes(layout.config, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_config(layout: RunLayout) -> dict[str, Any]:
    """Read the configuration of a run as plain values. Raises as `read_config_record`."""
    return dict(read_config_record(layout)["config"])


def read_versions(layout: RunLayout) -> dict[str, str]:
    """Read which versions of its packages a run was begun with. Raises as `read_config_record`."""
    return {str(package): str(version) for package, version in read_config_record(layout).get("versions", {}).items()}


def prune_rollouts(layout: RunLayout, keep: int, trained: int) -> list[Path]:
    """Remove the shards of trained iterations but the newest `keep`; receipts, rewards and manifests stay."""
    return remove_rollouts(layout, old_rollouts(layout.iterations(), keep, trained))


def prune_checkpoints(layout: RunLayout, keep: int, protected: Collection[int] = ()) -> list[Path]:
    """Remove all checkpoints but the first, which is the start, the newest `keep`, and the protected ones."""
    return remove_checkpoints(layout, old_checkpoints(layout.checkpoints(), keep, protected))


def remove_rollouts(layout: RunLayout, iterations: Sequence[int]) -> list[Path]:
    """Remove the shards of iterations; return their paths. Receipts, rewards and manifests stay."""
    removed = [shard for iteration in iterations for shard in stored_shards(layout, iteration)]
    if removed:
        note_pruned(layout, rollouts=iterations)
    for shard in removed:
        shard.unlink(missing_ok=True)
    return removed


def remove_checkpoints(layout: RunLayout, numbers: Sequence[int]) -> list[Path]:
    """Remove checkpoints; return the paths of their folders."""
    if numbers:
        note_pruned(layout, checkpoints=numbers)
    removed = [layout.checkpoint(number) for number in numbers]
    for folder in removed:
        remove_folder(folder)
    return removed


def stored_shards(layout: RunLayout, iteration: int) -> list[Path]:
    """List the published shards of an iteration that were not removed."""
    return [shard for shard in layout.rollout(iteration).glob("shard-*.safetensors") if receipt_path(shard).exists()]


def read_pruned(layout: RunLayout) -> Pruned:
    """Read what was removed on purpose. Raises the errors of `read_object`."""
    if not layout.pruned.exists():
        return Pruned()
    return read_object(layout.pruned, Pruned, "list of what was pruned")


def note_pruned(layout: RunLayout, rollouts: Sequence[int] = (), checkpoints: Sequence[int] = ()) -> None:
    """Add to the list before anything is removed, so that a process that dies leaves nothing unexplained."""
    with _NOTING:
        _note_pruned(layout, rollouts, checkpoints)


_NOTING = threading.Lock()
"""A loop prunes its stage while its publisher prunes the store."""


def _note_pruned(layout: RunLayout, rollouts: Sequence[int], checkpoints: Sequence[int]) -> None:
    before = read_pruned(layout)
    pruned = Pruned(
        rollouts=tuple(sorted({*before.rollouts, *rollouts})),
        checkpoints=tuple(sorted({*before.checkpoints, *checkpoints})),
    )
    if pruned != before:
        replace_bytes(layout.pruned, pruned.model_dump_json().encode())


def sweep(layout: RunLayout) -> list[Path]:
    """Remove what killed processes have left half-written in a run; return what was removed."""
    return [path for folder in _folders(layout) for path in remove_stale(folder)]


def _folders(layout: RunLayout) -> Iterator[Path]:
    yield layout.root
    for name in ("checkpoints", "evaluations", "metrics", "rollouts", "timings", "votes"):
        folder = layout.root / name
        if folder.is_dir() and not folder.is_symlink():
            yield folder
            if name in ("evaluations", "rollouts", "timings", "votes"):
                yield from (inner for inner in folder.rglob("*") if inner.is_dir() and not inner.is_symlink())


def old_rollouts(iterations: Sequence[int], keep: int, trained: int) -> list[int]:
    """Choose the trained iterations, ascending, but the newest `keep`."""
    done = [iteration for iteration in iterations if iteration < trained]
    return done[: max(0, len(done) - keep)]


def old_checkpoints(numbers: Sequence[int], keep: int, protected: Collection[int] = ()) -> list[int]:
    """Choose the checkpoints, ascending, but the first, the newest `keep`, and the protected ones."""
    later = numbers[1:]
    return [number for number in later[: max(0, len(later) - keep)] if number not in protected]
