"""The run directory as a whole: its configuration, its metrics, and what is pruned from it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import CorruptFileError, ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import publish_bytes, remove_folder, remove_stale, replace_bytes, set_aside
from rlcm_cli.store.identity import check_owner, identify_run, read_config_record, read_run_identity
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout, receipt_path
from rlcm_cli.store.reading import LARGEST_JSON, REMEDY, Record, parse_record, read_bytes, read_json, read_object

TIMES = ("sample_seconds", "score_seconds", "train_seconds", "cpu_seconds", "finished_at")
"""Metrics that differ when an iteration is done again."""
SEAL = ("run", "digest")
"""Members of a metrics file that are not metrics."""
Measured = dict[str, float | None]
Number = Annotated[int, Field(ge=0)]


class Metrics(Record):
    """What every iteration's metrics have; a number that was not finite is null."""

    model_config = ConfigDict(extra="allow")

    run: str
    iteration: Number
    checkpoint: Number
    reward_mean: float | None
    reward_std: float | None = None
    reward_best: float | None = None
    rewards: Measured = Field(default_factory=dict)
    reward_stds: Measured = Field(default_factory=dict)
    monitored: Measured = Field(default_factory=dict)
    tasks: Measured = Field(default_factory=dict)


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


def publish_metrics(layout: RunLayout, number: int, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of the update that made checkpoint `number`, and derive `metrics.jsonl` from all of them.

    Those of an update that was done before, and whose checkpoint is lost, stay where only times differ; else
    they are moved into quarantine. Raises `ForeignFileError` where those of another run or checkpoint lie there.
    """
    own = {"iteration": number - 1, "checkpoint": number, **_finite(metrics)}
    row = {"format_version": FORMAT_VERSION, **own}
    record = {**row, "run": read_run_identity(layout)}
    path = layout.metrics(number)
    if path.exists():
        before = read_metrics_row(layout, number)
        if _without_times(before) == _without_times(row):
            row = before
        else:
            set_aside(path, layout.quarantine / path.relative_to(layout.root))
    publish_bytes(path, json.dumps({**record, "digest": digest_json(record)}, ensure_ascii=False).encode())
    known = _read_lines(layout)
    if len(known) == number - 1:  # the usual case, without reading a thousand files an iteration
        lines = [*known, json.dumps(row, ensure_ascii=False)]
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in read_metrics(layout)]
    replace_bytes(layout.metrics_jsonl, ("\n".join(lines) + "\n").encode())


def read_last_metrics(layout: RunLayout, number: int) -> dict[str, Any]:
    """Read the metrics of the update that made checkpoint `number`; empty where there are none."""
    return read_metrics_row(layout, number) if layout.metrics(number).exists() else {}


def read_metrics(layout: RunLayout) -> list[dict[str, Any]]:
    """Read the metrics of all iterations, oldest first. Raises as `read_metrics_row`."""
    return [read_metrics_row(layout, number) for number in layout.measured()]


def read_metrics_row(layout: RunLayout, number: int) -> dict[str, Any]:
    """Read the metrics of the update that made a checkpoint.

    Raises the errors of `read_json`, and `ForeignFileError` for those of another run or checkpoint.
    """
    path = layout.metrics(number)
    remedy = REMEDY.format(path=path)
    values = read_json(path)
    metrics = parse_record({key: value for key, value in values.items() if key != "digest"}, Metrics, path, "metrics")
    check_owner(metrics.run, layout, path)
    if (metrics.checkpoint, metrics.iteration) != (number, number - 1):
        raise ForeignFileError(f"{path}: has the metrics of checkpoint {metrics.checkpoint}; {remedy}")
    sealed = {key: value for key, value in values.items() if key != "digest"}
    if values.get("digest") != digest_json(sealed):
        raise CorruptFileError(f"{path}: is not as it was published: its digest is another's; {remedy}")
    return {key: value for key, value in values.items() if key not in SEAL}


def _without_times(row: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps({name: value for name, value in row.items() if name not in TIMES}))


def _read_lines(layout: RunLayout) -> list[str]:
    """Read `metrics.jsonl`, which is derived: what cannot be read of it is written again."""
    with contextlib.suppress(MissingFileError, CorruptFileError, UnicodeDecodeError):
        return read_bytes(layout.metrics_jsonl, LARGEST_JSON).decode().splitlines()
    return []


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prune_rollouts(layout: RunLayout, keep: int, trained: int) -> list[Path]:
    """Remove the shards of trained iterations but the newest `keep`; receipts, rewards and manifests stay."""
    old = old_rollouts(layout.iterations(), keep, trained)
    removed = []
    for iteration in old:
        for shard in layout.rollout(iteration).glob("shard-*.safetensors"):
            if receipt_path(shard).exists():
                removed.append(shard)
    if removed:
        _note_pruned(layout, rollouts=old)
    for shard in removed:
        shard.unlink(missing_ok=True)
    return removed


def prune_checkpoints(layout: RunLayout, keep: int, protected: Collection[int] = ()) -> list[Path]:
    """Remove all checkpoints but the first, which is the start, the newest `keep`, and the protected ones."""
    old = old_checkpoints(layout.checkpoints(), keep, protected)
    if old:
        _note_pruned(layout, checkpoints=old)
    removed = [layout.checkpoint(number) for number in old]
    for folder in removed:
        remove_folder(folder)
    return removed


def read_pruned(layout: RunLayout) -> Pruned:
    """Read what was removed on purpose. Raises the errors of `read_object`."""
    if not layout.pruned.exists():
        return Pruned()
    return read_object(layout.pruned, Pruned, "list of what was pruned")


def _note_pruned(layout: RunLayout, rollouts: Sequence[int] = (), checkpoints: Sequence[int] = ()) -> None:
    """Add to the list before anything is removed, so that a process that dies leaves nothing unexplained."""
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
    for name in ("checkpoints", "evaluations", "metrics", "rollouts", "timings"):
        folder = layout.root / name
        if folder.is_dir() and not folder.is_symlink():
            yield folder
            if name in ("evaluations", "rollouts", "timings"):
                yield from (inner for inner in folder.rglob("*") if inner.is_dir() and not inner.is_symlink())


def old_rollouts(iterations: Sequence[int], keep: int, trained: int) -> list[int]:
    """Choose the trained iterations, ascending, but the newest `keep`."""
    done = [iteration for iteration in iterations if iteration < trained]
    return done[: max(0, len(done) - keep)]


def old_checkpoints(numbers: Sequence[int], keep: int, protected: Collection[int] = ()) -> list[int]:
    """Choose the checkpoints, ascending, but the first, the newest `keep`, and the protected ones."""
    later = numbers[1:]
    return [number for number in later[: max(0, len(later) - keep)] if number not in protected]
