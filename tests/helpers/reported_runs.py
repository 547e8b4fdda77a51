"""Runs for reports, written by the store alone: metrics, rollouts and evaluations, no model."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_values

from rlcm_cli.config import parse_config
from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.run.data import RunData, read_run
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.store.evaluations import Evaluation, publish_evaluation
from rlcm_cli.store.identity import read_run_identity
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import PolicyIdentity, RolloutManifest, ScheduleRecord, publish_manifest, split_groups
from rlcm_cli.store.metrics import IterationMetrics, publish_metrics
from rlcm_cli.store.rollouts import RolloutShard, publish_rewards, publish_shard
from rlcm_cli.store.run import publish_config

PROMPTS = ("cat", "dog", "cow", "bee")
REWARD, MONITORED = "compressibility", "recognition"
SAMPLES = 8


def reward_of(iteration: int, sample: int) -> float:
    """Reward of a sample: it rises with the iteration, and prompts differ by whole numbers."""
    return iteration / 10 + sample % len(PROMPTS) + sample / 100


def write_reported(
    root: Path,
    *,
    iterations: int = 4,
    rollouts: int | None = None,
    checkpoints: Sequence[int] = (0, 2, 4),
    prompts: Sequence[str] = PROMPTS,
    seed: int = 5,
    model: Path = Path("emoji-lcm"),
    rewards: Sequence[str] = (REWARD,),
    prompts_of: str = "simple_animals",
    **sections: Any,
) -> RunLayout:
    """Write a run of some iterations, with rollouts of the first ones, and evaluations of some checkpoints."""
    layout = RunLayout(root)
    values = tiny_values(
        model,
        seed=seed,
        monitor={"rewards": [MONITORED]},
        prompts={"source": prompts_of},
        **sections,
    )
    values["rewards"] = dict.fromkeys(rewards, 1.0)
    publish_config(layout, parse_config(values).to_json(), {"rlcm": "0", "torch": "2"})
    for iteration in range(iterations if rollouts is None else rollouts):
        write_rollout(layout, iteration, prompts)
    for iteration in range(iterations):
        publish_metrics(layout, make_metrics(iteration, rewards))
    for checkpoint in checkpoints:
        write_evaluation(layout, checkpoint, prompts)
    return layout


def make_metrics(iteration: int, trained: Collection[str] = (REWARD,), **changes: Any) -> IterationMetrics:
    """Metrics of an iteration, as `train` publishes them, with some changes."""
    mean = sum(reward_of(iteration, sample) for sample in range(SAMPLES)) / SAMPLES
    values = {
        "iteration": iteration,
        "checkpoint": iteration + 1,
        "reward_mean": mean,
        "reward_std": 1.1,
        "reward_best": mean + 2,
        "rewards": dict.fromkeys(trained, mean),
        "reward_stds": {**dict.fromkeys(trained, 1.1), MONITORED: 0.5},
        "monitored": {MONITORED: -1 - iteration},
        "tasks": {"compression": mean},
        "loss": math.sin(iteration),
        "ratio": 1.0,
        "approx_kl": 1e-6 * iteration,
        "clip_fraction": 0.25 + 0.01 * iteration,
        "grad_norm": 0.01 * (iteration + 1),
        "ratio_drift": 0.0,
        "learning_rate": 1e-3 / (iteration + 1),
        "flat_prompts": 0,
        "samples": SAMPLES,
        "updates": 1,
        "forwards": 104,
        "sample_seconds": 1.0,
        "score_seconds": 0.25,
        "train_seconds": 2.0 + 0.1 * iteration,
        "cpu_seconds": 3.0,
        "finished_at": 1.7e9 + iteration,
    }
    return IterationMetrics.model_validate({**values, **changes})


def write_rollout(layout: RunLayout, iteration: int, prompts: Sequence[str] = PROMPTS) -> None:
    """Write a rollout of one shard, with its rewards."""
    manifest = RolloutManifest(
        run=read_run_identity(layout),
        iteration=iteration,
        tasks=("compression",),
        run_seed=5,
        model_digest="m" * 64,
        dtype="float32",
        policy=PolicyIdentity(kind="lcm", checkpoint=iteration, digest="p" * 64),
        schedule=ScheduleRecord(
            timesteps=(999, 499),
            next_timesteps=(499, -1),
            latents_coef=(1.5, 1.0),
            output_coef=(-1.25, -0.5),
            std=(0.9, 0.0),
            initial_scale=1.0,
            guidance_scale=4.0,
        ),
        reduction="mean",
        prompts=tuple(prompts[sample % len(prompts)] for sample in range(SAMPLES)),
        group_tasks=(0,) * SAMPLES,
        group_size=1,
        shards=split_groups(SAMPLES, 1, 1),
        final_latents=False,
        batch_size=4,
    )
    index = torch.arange(SAMPLES)
    publish_manifest(layout.manifest(iteration), manifest)
    shard = RolloutShard(
        Trajectories(
            torch.zeros(SAMPLES, 2, 1, 2, 2),
            torch.zeros(SAMPLES, 1),
            torch.tensor([[999, 499]]),
            torch.zeros(1).long(),
        ),
        images=(index * 20).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous(),
        sample_index=index,
        seed=2**62 + index,
        prompts=tuple(prompts),
        prompt_index=index % len(prompts),
        conditioning={},
    )
    publish_shard(layout, manifest, 0, shard)
    values = torch.tensor([reward_of(iteration, sample) for sample in range(SAMPLES)])
    for name, given in ((REWARD, values), (MONITORED, -values)):
        spec = RewardSpec(name)
        identity = {"name": name, "settings": spec.resolved, "digest": spec.digest, "revision": "1"}
        publish_rewards(layout, manifest, 0, spec.directory, identity, index, given)


def write_evaluation(layout: RunLayout, checkpoint: int, prompts: Sequence[str] = PROMPTS) -> None:
    """Write an evaluation of two images a prompt, the first prompt held out; their grey tells the checkpoint."""
    count = 2 * len(prompts)
    index = np.arange(count)
    publish_evaluation(
        layout,
        Evaluation(
            checkpoint=checkpoint,
            policy_digest="p" * 64,
            images=np.full((count, 3, 8, 8), 40 * checkpoint % 256, np.uint8),
            prompts=[prompt for prompt in prompts for _ in range(2)],
            tasks=["compression"] * count,
            seed=900 + index,
            held_out=index < 2,
            rewards={
                REWARD: (checkpoint * (1 + index // 2 * 0.5) + index / 10).astype(np.float32),
                MONITORED: np.full(count, -checkpoint, np.float32),
            },
        ),
    )


def data_of(layout: RunLayout) -> RunData:
    """Read a run as the command does."""
    return read_run(open_compared(layout.root), layout.root.name)
