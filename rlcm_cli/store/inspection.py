"""What a run, a record or an adapter holds, as plain values for a table or for JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcm_cli.core.lora_file import DENOISERS, PARTS, read_lora
from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.checkpoint import (
    digest_safetensors,
    find_checkpoint_weights,
    is_whole_denoiser,
    read_trainer_state,
)
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.rollouts import missing_shards
from rlcm_cli.store.run import read_config
from rlcm_cli.store.shards import check_record, is_published, read_receipt
from rlcm_cli.store.tensor_file import DTYPES, read_stored

INSPECTED = "a run, a checkpoint, a shard, a LoRA file or a PNG"


def describe_path(path: Path) -> dict[str, Any]:
    """Describe a run, a checkpoint, a record or a LoRA file.

    Raises `ConfigError` for a path that is none of them, and `StoreError` for a damaged one.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder; name {INSPECTED}")
    if (path / "config.json").is_file():
        return _describe_run(RunLayout(path))
    if (path / "trainer.json").is_file():
        return _describe_checkpoint(path)
    if path.suffix == ".safetensors" and is_published(path):
        return _describe_record(path)
    if path.suffix == ".safetensors":
        return _describe_weights(path)
    pictures = [file for form in ("*", "*/*") for file in path.glob(form) if file.suffix.lower() == ".png"]
    if pictures:
        raise ConfigError(
            f"{path}: is a folder with pictures, not a run; name one of its PNGs, such as {min(pictures)}"
        )
    raise ConfigError(f"{path}: is none of what can be inspected; name {INSPECTED}")


def _describe_run(layout: RunLayout) -> dict[str, Any]:
    config, metrics = read_config(layout), read_metrics(layout)
    checkpoints = layout.checkpoints()
    rollouts = {}
    for iteration in layout.iterations():
        manifest = read_manifest(layout.manifest(iteration))
        count = len(manifest.shards)
        rewards = {}
        for folder in sorted((layout.rollout(iteration) / "rewards").glob("*")):
            scored = sum(
                is_published(layout.reward_shard(iteration, folder.name, number, count)) for number in range(count)
            )
            rewards[folder.name] = f"{scored}/{count}"
        sampled = count - len(missing_shards(layout, manifest))
        rollouts[iteration] = {"sampled": f"{sampled}/{count}", "rewards": rewards}
    return {
        "kind": "run",
        "task": config.get("task"),
        "model": config.get("model", {}).get("name"),
        "seed": config.get("seed"),
        "iterations trained": checkpoints[-1] if checkpoints else 0,
        "checkpoints": checkpoints,
        "rollouts": rollouts,
        "evaluations": layout.evaluations(),
        "reward of the first iteration": metrics[0].reward_mean if metrics else None,
        "reward of the last iteration": metrics[-1].reward_mean if metrics else None,
        "bytes": sum(file.stat().st_size for file in layout.root.rglob("*") if file.is_file()),
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    layout = RunLayout(path.resolve().parent.parent)
    name = path.resolve().name
    if not name.isdecimal() or layout.checkpoint(int(name[:9])).name != name:
        raise ConfigError(f"{path}: is a checkpoint under another name; give it its number, such as 000001")
    state = read_trainer_state(layout, int(name))
    weights = find_checkpoint_weights(path)
    described = {"adapter": _describe_weights(weights)} if weights else {}
    return {"kind": "checkpoint", **state.model_dump(exclude={"format_version"}), **described}


def _describe_record(path: Path) -> dict[str, Any]:
    receipt = read_receipt(path)
    _, fields, tensors = check_record(path, receipt.kind)
    shapes = {name: f"{DTYPES[info.dtype]} {list(info.shape)}" for name, info in sorted(tensors.items())}
    return {
        "kind": receipt.kind,
        "sha256": receipt.sha256,
        "receipt": receipt_path(path).name,
        "rows": receipt.rows,
        "fields": fields,
        "tensors": shapes,
    }


def _describe_weights(path: Path) -> dict[str, Any]:
    tensors, metadata = read_stored(path)
    size = {
        "layers": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "digest": digest_safetensors(path),
    }
    if is_whole_denoiser(path):
        return {"kind": "denoiser", **size}
    lora = read_lora(tensors, metadata or {}, str(path))
    stated = next((lora.stated[part] for part in DENOISERS if part in lora.stated), None)
    return {
        "kind": "adapter",
        "format": "kohya" if lora.kohya else "diffusers",
        "rank": _range({module.rank for module in lora.modules}),
        "alpha": _range({module.alpha for module in lora.modules}),
        "strength": _range({module.strength for module in lora.modules}),
        "modules": {part: len(lora.of(part)) for part in (*PARTS, "") if lora.of(part)},
        **({"target_modules": list(stated.target_modules)} if stated and stated.target_modules else {}),
        **size,
    }


def _range(values: set[int] | set[float]) -> int | float | str:
    """Return the one value, or the least and the greatest."""
    low, high = min(values), max(values)
    if low == high:
        return int(low) if low == int(low) else low
    return f"{low:g} to {high:g}"
