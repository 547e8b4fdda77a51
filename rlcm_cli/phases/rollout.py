"""An iteration's samples as training takes them: shards, conditioning and rewards, read and joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.core.schedule import Schedule
from rlcm_cli.core.trajectory import Trajectories, join_trajectories
from rlcm_cli.errors import ForeignFileError, MissingFileError, StalePolicyError
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.phases.advantages import sum_rewards
from rlcm_cli.phases.run import Run
from rlcm_cli.phases.schedules import restore_schedule
from rlcm_cli.store.checkpoint import TrainerState
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.rollouts import RolloutShard, missing_shards, read_rewards, read_shard
from rlcm_cli.store.shards import REMEDY


@dataclass(frozen=True)
class Rollout:
    """An iteration's samples, in the order of their plan."""

    manifest: RolloutManifest
    schedule: Schedule
    trajectories: Trajectories
    conditioning: Mapping[str, Tensor]
    """Name → [U, …]."""
    conditioning_index: Tensor
    """int64 [B], row of each sample."""
    groups: Tensor
    """int64 [B], group of each sample: the images of one prompt drawn together."""
    prompts: list[str]
    tasks: list[str]
    """Task of each sample."""
    components: Mapping[str, Tensor]
    """Reward name → float32 [B]; NaN where the sample's task does not have it."""
    rewards: Tensor
    """The weighted sum of the rewards that the sample's task is trained for, float32 [B]."""


def read_rollout(run: Run, model: DiffusionModel, policy: TrainerState, *, off_policy: bool) -> Rollout:
    """Read and join the shards and rewards of the iteration that follows a checkpoint."""
    layout = run.layout
    manifest = read_manifest(layout.manifest(policy.number))
    path = layout.manifest(policy.number)
    if manifest.model_digest != model.digest:
        raise ForeignFileError(
            f"{path}: its samples come from another base model than '{run.config.model.name}' loads here; "
            + REMEDY.format(path=path.parent)
        )
    if manifest.policy.digest != policy.policy_digest and not off_policy:
        raise StalePolicyError(
            f"{path}: its samples were drawn by another policy than checkpoint {policy.number}; draw them anew "
            f"({REMEDY.format(path=path.parent)}), or train on them all the same with --off-policy"
        )
    absent = missing_shards(layout, manifest)
    if absent:
        raise MissingFileError(
            f"{path.parent}: {len(absent)} of {len(manifest.shards)} shards are not sampled yet (first: {absent[0]}); "
            f"run `rlcm sample --run {layout.root}`, then score them"
        )
    # Shards first: the rewards of a foreign shard do not fit it, but the shard is the one to blame.
    shards = [read_shard(layout, manifest, number) for number in range(len(manifest.shards))]
    components = {
        name: read_rewards(layout, manifest, spec.directory, run.scored_tasks(name))
        for name, spec in run.reward_specs().items()
    }
    tasks = [manifest.tasks[manifest.task_of(sample)] for sample in range(manifest.shards[-1][1])]
    conditioning, index = join_conditioning(shards)
    return Rollout(
        manifest=manifest,
        schedule=restore_schedule(manifest.schedule),
        trajectories=join_trajectories([shard.trajectories for shard in shards]),
        conditioning=conditioning,
        conditioning_index=index,
        groups=torch.arange(manifest.shards[-1][1]) // manifest.group_size,
        prompts=[prompt for shard in shards for prompt in shard.sample_prompts()],
        tasks=tasks,
        components=components,
        rewards=sum_rewards(run.config, tasks, components),
    )


def join_conditioning(shards: list[RolloutShard]) -> tuple[dict[str, Tensor], Tensor]:
    """Join the shards' conditioning tables, and shift each sample's row accordingly."""
    names = shards[0].conditioning.keys()
    tables = {name: torch.cat([shard.conditioning[name] for shard in shards]) for name in names}
    rows, offset = [], 0
    for shard in shards:
        rows.append(shard.prompt_index + offset)
        offset += len(shard.prompts)
    return tables, torch.cat(rows)
