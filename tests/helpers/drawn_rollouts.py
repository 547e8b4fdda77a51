"""Rollouts drawn without a run, and how far the ratios of replaying them are from 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlcm_cli.config import Config, override_config
from rlcm_cli.core.trajectory import join_trajectories
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.rollout import Rollout, join_conditioning
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases.sample import assemble_shard, draw_shard, plan_rollout
from rlcm_cli.runs.inputs import read_prompts
from rlcm_cli.runs.schedules import restore_schedule
from rlcm_cli.store.checkpoint import TrainerState

SAMPLES = 8


def draw_rollout(workers: Sequence[LatentModel], config: Config) -> Rollout:
    """Draw a whole plan, shard k by worker k mod N."""
    model = workers[0]
    policy = TrainerState(run="", number=0, optimizer_steps=0, model_digest=model.digest, policy_digest="")
    manifest = plan_rollout(config, read_prompts(config), model, policy, iteration=0)
    shards = []
    for number in range(len(manifest.shards)):
        worker = workers[number % len(workers)]
        shards.append(assemble_shard(manifest, worker, number, list(draw_shard(manifest, worker, number))))
    conditioning, index = join_conditioning(shards)
    return Rollout(
        manifest=manifest,
        schedule=restore_schedule(manifest.schedule),
        trajectories=join_trajectories([shard.trajectories for shard in shards]),
        conditioning=conditioning,
        conditioning_index=index,
        groups=torch.arange(SAMPLES) // manifest.group_size,
        prompts=[prompt for shard in shards for prompt in shard.sample_prompts()],
        tasks=["compression"] * SAMPLES,
        components={},
        revisions={},
        rewards=torch.zeros(SAMPLES),
    )


def ratio_drift(
    model: LatentModel, rollout: Rollout, config: Config, micro_batch_size: int = 64, order: torch.Tensor | None = None
) -> float:
    if order is None:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    every = Minibatch(order, torch.arange(rollout.trajectories.actions).expand(SAMPLES, -1))
    config = override_config(config, flags={"runtime.micro_batch_size": micro_batch_size})
    learner = Learner(model, rollout, torch.linspace(-1, 1, SAMPLES), config)
    record = find_objective(config).accumulate(learner, every)
    assert abs(record.values["ratio"] - 1) <= record.values["ratio_drift"] + 1e-12
    return record.values["ratio_drift"]
