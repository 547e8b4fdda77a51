"""Phase 2: give the stored images their rewards, each reward in a sidecar of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlcm_cli.errors import MissingFileError
from rlcm_cli.phases.events import Advanced, Event, PhaseSkipped, PhaseStarted, Warned
from rlcm_cli.phases.run import Run, Worker
from rlcm_cli.rewards import RewardFn, RewardSpec, load_reward, score_images
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.rollouts import missing_rewards, missing_shards, publish_rewards, read_shard
from rlcm_cli.store.shards import is_published


def load_rewards(run: Run) -> dict[str, RewardFn]:
    """Load the reward functions of a run's configuration."""
    return {name: load_reward(spec) for name, spec in run.reward_specs().items()}


def score(
    run: Run,
    rewards: Mapping[str, RewardFn],
    worker: Worker = Worker(),  # noqa: B008
) -> Iterator[Event]:
    """Score the shards of this worker, of every rollout that is not trained yet, that lack a reward.

    Raises `MissingFileError` where nothing was sampled.
    """
    layout = run.layout
    open_iterations = [i for i in layout.iterations() if i >= (layout.checkpoints() or [0])[-1]]
    if not layout.iterations():
        raise MissingFileError(
            f"{layout.root}: holds no rollouts to score; draw some with `rlcm sample --run {layout.root}`"
        )
    specs = run.reward_specs()
    directories = {name: spec.directory for name, spec in specs.items()}
    for iteration in open_iterations:
        manifest = read_manifest(layout.manifest(iteration))
        absent = missing_shards(layout, manifest)
        todo = [
            number
            for number in missing_rewards(layout, manifest, list(directories.values()))
            if number not in absent and worker.takes(number)
        ]
        if absent:
            yield Warned(
                f"iteration {iteration}: {len(absent)} of {len(manifest.shards)} shards are not sampled yet; "
                "run `rlcm sample`, then `rlcm score` again"
            )
        if not todo:
            yield PhaseSkipped("score", iteration, "all sampled shards have their rewards")
            continue
        yield PhaseStarted("score", iteration, _samples(manifest, todo), "images")
        for number in todo:
            for name, reward in rewards.items():
                score_shard(layout, manifest, number, directories[name], specs[name], reward)
            yield Advanced(_samples(manifest, [number]))


def score_shard(
    layout: RunLayout,
    manifest: RolloutManifest,
    number: int,
    directory: str,
    spec: RewardSpec,
    reward: RewardFn,
) -> None:
    """Score one shard with one reward, unless it is scored."""
    if is_published(layout.reward_shard(manifest.iteration, directory, number, len(manifest.shards))):
        return
    shard = read_shard(layout, manifest, number)
    metadata: list[dict[str, Any]] = [
        {"iteration": manifest.iteration, "sample": index, "seed": seed}
        for index, seed in zip(shard.sample_index.tolist(), shard.seed.tolist(), strict=True)
    ]
    values = score_images(reward, spec.name, shard.images, shard.sample_prompts(), metadata)
    identity = {"name": spec.name, "settings": _portable(spec), "digest": spec.digest}
    publish_rewards(layout, manifest, number, directory, identity, shard.sample_index, values)


def combine_rewards(components: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Give the training reward, the weighted sum of its components: float32 [B] each."""
    return torch.stack([weights[name] * values for name, values in components.items()]).sum(0)


def _portable(spec: RewardSpec) -> dict[str, Any]:
    # A judge's folder is a path of this machine; its content is in the digest.
    return {key: value for key, value in spec.resolved.items() if key != "model"}


def _samples(manifest: RolloutManifest, numbers: list[int]) -> int:
    return sum(manifest.shards[number][1] - manifest.shards[number][0] for number in numbers)
