"""Runs to vote on, written by the store alone: the grey of an image says how good it is, darker is worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import tiny_values

from rlcm_cli.config import parse_config
from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.runs.run import Run, create_run
from rlcm_cli.store.evaluations import Evaluation, publish_evaluation
from rlcm_cli.store.identity import read_run_identity
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import PolicyIdentity, RolloutManifest, ScheduleRecord, publish_manifest, split_groups
from rlcm_cli.store.rollouts import RolloutShard, publish_shard
from rlcm_cli.store.votes import Answer, publish_vote
from rlcm_cli.voting.contests import Contest
from rlcm_cli.voting.plan import Pair, plan_pairs

SIDE = 8


def write_voted(
    root: Path,
    *,
    greys: Sequence[Sequence[int]] = ((10, 200, 90), (250, 30, 120)),
    shards: int = 2,
    rewards: Sequence[str] = ("votes",),
    seed: int = 5,
    **sections: Any,
) -> Run:
    """Write a run with one rollout: a group for each row of greys, with the prompts `prompt 0`, `prompt 1`, …"""
    samples, size = sum(map(len, greys)), len(greys[0])
    values = tiny_values(
        Path("emoji-lcm"), seed=seed, sample={"samples": samples, "group_size": size, "shards": shards}, **sections
    )
    values["rewards"] = dict.fromkeys(rewards, 1.0)
    values["train"] = {**values["train"], "minibatch_size": None}
    layout = RunLayout(root)
    run = create_run(root, parse_config(values))
    write_grey_rollout(layout, 0, greys, shards)
    return run


def write_grey_rollout(layout: RunLayout, iteration: int, greys: Sequence[Sequence[int]], shards: int = 1) -> None:
    """Write a rollout with a group for each row of greys."""
    size, flat = len(greys[0]), [grey for row in greys for grey in row]
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
        prompts=tuple(f"prompt {group}" for group in range(len(greys))),
        group_tasks=(0,) * len(greys),
        group_size=size,
        shards=split_groups(len(flat), size, shards),
        final_latents=False,
        batch_size=4,
    )
    publish_manifest(layout.manifest(iteration), manifest)
    for number, (start, stop) in enumerate(manifest.shards):
        index = torch.arange(start, stop)
        prompts = tuple(dict.fromkeys(manifest.prompt_of(sample) for sample in range(start, stop)))
        shard = RolloutShard(
            Trajectories(
                torch.zeros(len(index), 2, 1, 2, 2),
                torch.zeros(len(index), 1),
                torch.tensor([[999, 499]]),
                torch.zeros(1).long(),
            ),
            images=torch.from_numpy(paint(flat[start:stop])),
            sample_index=index,
            seed=2**62 + index,
            prompts=prompts,
            prompt_index=index // size - start // size,
            conditioning={},
        )
        publish_shard(layout, manifest, number, shard)


def write_grey_evaluation(run: Run, checkpoint: int, greys: Sequence[int], prompts: Sequence[str] = ()) -> None:
    """Write an evaluation with an image a grey, of one prompt each, of which the first is held out."""
    count = len(greys)
    publish_evaluation(
        run.layout,
        Evaluation(
            checkpoint=checkpoint,
            policy_digest="p" * 64,
            images=paint(greys),
            prompts=list(prompts) or [f"prompt {row}" for row in range(count)],
            tasks=["compression"] * count,
            seed=np.arange(count),
            held_out=np.arange(count) < 1,
            rewards={},
        ),
    )


def paint(greys: Sequence[int]) -> np.ndarray:
    """Paint an image of each grey, uint8 [B, 3, SIDE, SIDE]."""
    return np.asarray(greys, np.uint8)[:, None, None, None] * np.ones((1, 3, SIDE, SIDE), np.uint8)


def vote_all(
    run: Run, contests: Sequence[Contest], judge: Callable[[Pair], Answer], voter: str = "0123abcd", seed: int = 0
) -> int:
    """Vote on every pair of contests as `judge` says; return how many there were."""
    pairs = plan_pairs(contests, seed)
    for pair in pairs:
        publish_vote(run.layout, voter, pair.left, pair.right, judge(pair))
    return len(pairs)


def prefer_bright(gallery: dict[str, np.ndarray]) -> Callable[[Pair], Answer]:
    """Make the judge that takes the brighter image, and calls equal ones a tie."""

    def judge(pair: Pair) -> Answer:
        left, right = (float(gallery[image.record][image.row].mean()) for image in (pair.left, pair.right))
        return "tie" if left == right else "left" if left > right else "right"

    return judge
