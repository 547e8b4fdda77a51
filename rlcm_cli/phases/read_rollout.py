"""The rollout that training takes, read from a run's files and checked."""

from __future__ import annotations

import torch

from rlcm_cli.errors import ForeignFileError, MissingFileError, StalePolicyError
from rlcm_cli.learning.advantages import sum_rewards
from rlcm_cli.learning.rollout import Rollout, join_shards
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import restore_schedule
from rlcm_cli.store.checkpoint import TrainerState, find_drawing_digest, read_trainer_state
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.rollouts import missing_shards, read_scores, read_shard
from rlcm_cli.wording import command


def read_rollout(run: Run, model: LatentModel, policy: TrainerState, *, off_policy: bool) -> Rollout:
    """Read and join the shards and rewards of the iteration that follows a checkpoint.

    Raises `StalePolicyError` where another checkpoint drew them than should have, unless `off_policy` admits that.
    """
    layout = run.layout
    manifest = read_manifest(layout.manifest(policy.number))
    path = layout.manifest(policy.number)
    if manifest.model_digest != model.digest:
        raise ForeignFileError(
            f"{path}: its samples come from another base model than '{run.config.model.name}' loads here; "
            + REMEDY.format(path=path.parent)
        )
    if not off_policy:
        number = run.config.sample.drawing_checkpoint(policy.number)
        drawer = policy if number == policy.number else read_trainer_state(layout, number)
        if manifest.policy.digest != find_drawing_digest(layout, drawer):
            raise StalePolicyError(
                f"{path}: its samples were drawn by another policy than checkpoint {number}; draw them again "
                f"({REMEDY.format(path=path.parent)}), or train on them all the same with --off-policy"
            )
    absent = missing_shards(layout, manifest)
    if absent:
        raise MissingFileError(
            f"{path.parent}: {len(absent)} of {len(manifest.shards)} shards are not sampled yet (first: {absent[0]}); "
            f"run `{command('sample', '--run', layout.root)}`, then score them"
        )
    samples = manifest.shards[-1][1]
    # Shards first: the rewards of a foreign shard do not fit it, but the shard is the one to blame.
    joined = join_shards((read_shard(layout, manifest, number) for number in range(len(manifest.shards))), samples)
    scores = {
        name: read_scores(layout, manifest, spec.directory, run.scored_tasks(name))
        for name, spec in run.reward_specs().items()
    }
    components = {name: torch.from_numpy(found.values) for name, found in scores.items()}
    tasks = [manifest.tasks[manifest.task_of(sample)] for sample in range(samples)]
    return Rollout(
        manifest=manifest,
        schedule=restore_schedule(manifest.schedule),
        trajectories=joined.trajectories,
        conditioning=joined.conditioning,
        conditioning_index=joined.conditioning_index,
        groups=torch.arange(samples) // manifest.group_size,
        prompts=joined.prompts,
        tasks=tasks,
        components=components,
        rewards=sum_rewards(run.config, tasks, components),
        revisions={name: found.revision for name, found in scores.items() if found.revision},
        final_latents=joined.final_latents,
    )
