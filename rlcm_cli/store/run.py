"""The run directory as a whole: its configuration, its metrics, and what is pruned from it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import publish_bytes, remove_folder, replace_bytes
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout, receipt_path
from rlcm_cli.store.shards import read_json
from rlcm_cli.wording import command


def publish_config(layout: RunLayout, config_json: str, versions: Mapping[str, str]) -> None:
    """Write the configuration of a run that has none yet."""
    record = {"format_version": FORMAT_VERSION, "config": json.loads(config_json), "versions": dict(versions)}
    publish_bytes(layout.config, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_config(layout: RunLayout) -> dict[str, Any]:
    """Read the configuration of a run as plain values. Raises `MissingFileError` or `ForeignFileError`."""
    try:
        record = read_json(layout.config)
    except MissingFileError:
        start = command("loop", "--task", "NAME", "--run", layout.root)
        raise MissingFileError(
            f"{layout.root}: is not a run directory (no config.json); `{start}` starts one there"
        ) from None
    if not isinstance(record.get("config"), dict):
        raise ForeignFileError(f"{layout.config}: is no configuration of a run; choose another --run")
    return dict(record["config"])


def publish_metrics(layout: RunLayout, number: int, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of the update that made checkpoint `number`, and derive `metrics.jsonl` from all of them."""
    text = json.dumps({"format_version": FORMAT_VERSION, **metrics}, ensure_ascii=False)
    replace_bytes(layout.metrics(number), text.encode())
    known = layout.metrics_jsonl.read_text(encoding="utf-8").splitlines() if layout.metrics_jsonl.exists() else []
    if len(known) == number - 1:  # the usual case, without reading a thousand files an iteration
        lines = [*known, text]
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in read_metrics(layout)]
    replace_bytes(layout.metrics_jsonl, ("\n".join(lines) + "\n").encode())


def read_last_metrics(layout: RunLayout, number: int) -> dict[str, Any]:
    """Read the metrics of the update that made checkpoint `number`; empty where there are none."""
    return read_json(layout.metrics(number)) if layout.metrics(number).exists() else {}


def read_metrics(layout: RunLayout) -> list[dict[str, Any]]:
    """Read the metrics of all iterations, oldest first."""
    files = sorted((layout.root / "metrics").glob("*.json"))
    return [read_json(file) for file in files]


def prune_rollouts(layout: RunLayout, keep: int, trained: int) -> list[Path]:
    """Remove the shards of trained iterations but the newest `keep`; receipts, rewards and manifests stay."""
    removed = []
    for iteration in old_rollouts(layout.iterations(), keep, trained):
        for shard in layout.rollout(iteration).glob("shard-*.safetensors"):
            if receipt_path(shard).exists():
                shard.unlink(missing_ok=True)
                removed.append(shard)
    return removed


def prune_checkpoints(layout: RunLayout, keep: int, protected: Collection[int] = ()) -> list[Path]:
    """Remove all checkpoints but the first, which is the start, the newest `keep`, and the protected ones."""
    removed = [layout.checkpoint(number) for number in old_checkpoints(layout.checkpoints(), keep, protected)]
    for folder in removed:
        remove_folder(folder)
    return removed


def old_rollouts(iterations: Sequence[int], keep: int, trained: int) -> list[int]:
    """Choose the trained iterations, ascending, but the newest `keep`."""
    done = [iteration for iteration in iterations if iteration < trained]
    return done[: max(0, len(done) - keep)]


def old_checkpoints(numbers: Sequence[int], keep: int, protected: Collection[int] = ()) -> list[int]:
    """Choose the checkpoints, ascending, but the first, the newest `keep`, and the protected ones."""
    later = numbers[1:]
    return [number for number in later[: max(0, len(later) - keep)] if number not in protected]
