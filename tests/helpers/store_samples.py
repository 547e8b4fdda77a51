"""A small run written by the store alone: random tensors, no model."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from metric_rows import make_row

from rlcm_cli.core.digests import canonical_json, sha256
from rlcm_cli.core.lora_file import METADATA_KEY
from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.store.checkpoint import LORA_FILE, publish_checkpoint
from rlcm_cli.store.evaluations import Evaluation, publish_evaluation
from rlcm_cli.store.identity import identify_run
from rlcm_cli.store.inputs import Inputs, publish_inputs
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import PolicyIdentity, RolloutManifest, ScheduleRecord, publish_manifest, split_groups
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.rollouts import RolloutShard, publish_rewards, publish_shard
from rlcm_cli.store.run import publish_config

SAMPLES, GROUP_SIZE, SHARDS, STATES = 8, 2, 2, 3
REWARD = "odd-0123456789ab"
IDENTITY = {"name": "odd", "settings": {}, "digest": "0123456789ab", "revision": "1"}
"""Of the reward."""
CONFIG = {"task": "compression", "seed": 5, "model": {"name": "tiny"}}
LORA_METADATA = {"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": ["to_q", "to_k"]}


def make_manifest(iteration: int = 0, **changes: Any) -> RolloutManifest:
    values: dict[str, Any] = {
        "run": identify_run(CONFIG),
        "iteration": iteration,
        "tasks": ("compression",),
        "run_seed": 5,
        "model_digest": "m" * 64,
        "dtype": "float32",
        "policy": PolicyIdentity(kind="lcm", checkpoint=iteration, digest="p" * 64),
        "schedule": ScheduleRecord(
            timesteps=(999, 679, 339),
            next_timesteps=(679, 339, -1),
            latents_coef=(1.5, 1.25, 1.0),
            output_coef=(-1.25, -0.75, -0.5),
            std=(0.9, 0.6, 0.0),
            initial_scale=1.0,
            guidance_scale=4.0,
        ),
        "reduction": "mean",
        "prompts": ("cat", "dog", "cat", "cow"),
        "group_tasks": (0, 0, 0, 0),
        "group_size": GROUP_SIZE,
        "shards": split_groups(SAMPLES, GROUP_SIZE, SHARDS),
        "final_latents": False,
        "batch_size": 2,
    }
    return RolloutManifest(**{**values, **changes})


def make_shard(manifest: RolloutManifest, number: int) -> RolloutShard:
    start, stop = manifest.shards[number]
    count = stop - start
    generator = torch.Generator().manual_seed(1000 * manifest.iteration + number)
    prompts = [manifest.prompt_of(sample) for sample in range(start, stop)]
    unique = tuple(dict.fromkeys(prompts))
    return RolloutShard(
        trajectories=Trajectories(
            torch.randn(count, STATES, 4, 2, 2, generator=generator),
            torch.randn(count, STATES - 1, generator=generator),
            torch.tensor([[999, 679], [679, 339]]),
            torch.arange(STATES - 1),
        ),
        images=torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator),
        sample_index=torch.arange(start, stop),
        seed=torch.randint(0, 2**62, (count,), generator=generator),
        prompts=unique,
        prompt_index=torch.tensor([unique.index(prompt) for prompt in prompts]),
        conditioning={"prompt_embeds": torch.randn(len(unique), 3, 2, generator=generator)},
    )


def publish_run(layout: RunLayout) -> None:
    publish_inputs(layout, Inputs({"prompts": ("a cat",)}, {}), identify_run(CONFIG))
    publish_config(layout, json.dumps(CONFIG), {"rlcm": "0"})


def write_lora(folder: Path, value: float = 1.0, metadata: dict[str, Any] | None = None) -> None:
    shapes = {"A": (2, 3), "B": (3, 2)}
    tensors = {f"unet.to_q.lora_{part}.weight": torch.full(shape, value) for part, shape in shapes.items()}
    text = json.dumps(LORA_METADATA if metadata is None else metadata)
    safetensors.torch.save_file(tensors, folder / LORA_FILE, metadata={"format": "pt", METADATA_KEY: text})


def write_checkpoint(layout: RunLayout, number: int, value: float = 1.0) -> None:
    publish_run(layout)
    publish_checkpoint(
        layout,
        number,
        write_weights=lambda folder: write_lora(folder, value),
        model_digest="m" * 64,
        optimizer={"exp_avg/to_q": torch.full((2, 3), 0.5 + number)},
        optimizer_steps=number,
        statistics={"compression/odd": {"cat": (1.0, 2.0)}},
    )


def write_rollout(layout: RunLayout, manifest: RolloutManifest) -> None:
    publish_run(layout)
    publish_manifest(layout.manifest(manifest.iteration), manifest)
    for number in range(len(manifest.shards)):
        shard = make_shard(manifest, number)
        publish_shard(layout, manifest, number, shard)
        values = shard.sample_index.float() / 10
        publish_rewards(layout, manifest, number, REWARD, IDENTITY, shard.sample_index, values)


def write_run(root: Path, iterations: int = 1) -> RunLayout:
    """Write a run of some trained iterations, with an evaluation of its first checkpoint."""
    for name, data in _run_files(iterations).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return RunLayout(root)


@functools.cache
def _run_files(iterations: int) -> dict[str, bytes]:
    # Published once a session: flushing each file to the disk takes longer than all else here.
    with tempfile.TemporaryDirectory() as folder:
        publish_whole_run(RunLayout(Path(folder)), iterations)
        return contents(Path(folder))


def publish_whole_run(layout: RunLayout, iterations: int) -> None:
    """Publish what `write_run` writes."""
    publish_run(layout)
    write_checkpoint(layout, 0)
    for iteration in range(iterations):
        write_rollout(layout, make_manifest(iteration))
        publish_metrics(layout, make_row(iteration))
        write_checkpoint(layout, iteration + 1, 2.0 + iteration)
    evaluation = Evaluation(
        checkpoint=0,
        policy_digest="p" * 64,
        images=np.zeros((2, 3, 4, 4), np.uint8),
        prompts=["cat", "dog"],
        tasks=["compression", "other"],
        seed=np.array([3, 4]),
        held_out=np.array([False, True]),
        rewards={"odd": np.array([1.0, 2.0], np.float32)},
    )
    publish_evaluation(layout, evaluation)


def forge_record(path: Path, header: Any, tensors: dict[str, torch.Tensor] | None = None, **receipt: Any) -> None:
    """Write any safetensors file as a record whose receipt fits it."""
    metadata = {"rlcm": header if isinstance(header, str) else canonical_json(header)} if header is not None else None
    data = safetensors.torch.save({"sample_index": torch.arange(4)} if tensors is None else tensors, metadata=metadata)
    path.write_bytes(data)
    values = {"format_version": 1, "kind": "rollout", "sha256": sha256(data), "bytes": len(data), "rows": 4}
    receipt_path(path).write_text(canonical_json({**values, **receipt}))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(canonical_json({**json.loads(path.read_text()), **changes}))


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def contents(root: Path) -> dict[str, bytes]:
    """Give every file of a folder with its bytes."""
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}
