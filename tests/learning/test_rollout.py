"""Shards joined for training: every sample has what it had in its shard, and no shard stays in memory."""

import dataclasses
import weakref
from collections.abc import Iterator

import torch

from rlcm_cli.core.trajectory import Trajectories
from rlcm_cli.learning.rollout import join_conditioning, join_shards
from rlcm_cli.store.rollouts import RolloutShard

PROMPTS = ("cat", "dog", "eel")
STATES = 3


def embed(prompt: str) -> torch.Tensor:
    return torch.full((2, 4), float(PROMPTS.index(prompt)))


def make_shard(first: int, prompts: list[str]) -> RolloutShard:
    unique = tuple(dict.fromkeys(prompts))
    samples = torch.arange(first, first + len(prompts))
    latents = samples.view(-1, 1, 1, 1, 1) + torch.rand(1, STATES, 4, 2, 2)
    return RolloutShard(
        trajectories=Trajectories(
            latents, samples.view(-1, 1) + torch.tensor([[0.25, 0.5]]), torch.tensor([[9, 5], [5, 1]]), torch.arange(2)
        ),
        images=torch.zeros(len(prompts), 3, 8, 8, dtype=torch.uint8),
        sample_index=samples,
        seed=samples.clone(),
        prompts=unique,
        prompt_index=torch.tensor([unique.index(prompt) for prompt in prompts]),
        conditioning={"prompt_embeds": torch.stack([embed(prompt) for prompt in unique])},
    )


def test_samples_keep_what_they_had() -> None:
    shards = [make_shard(0, ["dog", "cat"]), make_shard(2, ["eel", "dog", "eel"]), make_shard(5, ["cat"])]
    joined = join_shards(iter(shards), 6)
    trajectories = [shard.trajectories for shard in shards]
    assert torch.equal(joined.trajectories.latents_BSCHW, torch.cat([part.latents_BSCHW for part in trajectories]))
    assert torch.equal(joined.trajectories.log_probs_BA, torch.cat([part.log_probs_BA for part in trajectories]))
    assert torch.equal(joined.trajectories.timesteps_A2, trajectories[0].timesteps_A2)
    assert torch.equal(joined.trajectories.calls_A, trajectories[0].calls_A)
    assert joined.prompts == ["dog", "cat", "eel", "dog", "eel", "cat"]
    rows = joined.conditioning["prompt_embeds"][joined.conditioning_index]
    assert torch.equal(rows, torch.stack([embed(prompt) for prompt in joined.prompts]))


def test_a_prompt_of_many_shards_is_kept_once() -> None:
    tables, index = join_conditioning(make_shard(2 * number, ["cat", "dog"]) for number in range(5))
    assert tables["prompt_embeds"].shape == (2, 2, 4)
    assert index.tolist() == [0, 1] * 5


def test_rows_that_another_machine_rounded_otherwise_stay_apart() -> None:
    here, there = make_shard(0, ["cat"]), make_shard(1, ["cat", "dog"])
    there.conditioning["prompt_embeds"][0] += 1e-7
    tables, index = join_conditioning([here, there, make_shard(3, ["cat"])])
    assert index.tolist() == [0, 1, 2, 0]
    assert torch.equal(tables["prompt_embeds"][1], there.conditioning["prompt_embeds"][0])


def test_shards_are_let_go_of() -> None:
    """Of mapped files: a shard that stays, or a tensor of it, keeps what was read of its file in memory."""
    shards: list[weakref.ref[RolloutShard]] = []
    tensors: list[weakref.ref[torch.Tensor]] = []

    def read() -> Iterator[RolloutShard]:
        for number in range(6):
            # The one before is still being held by whoever asked for the next.
            assert not [shard for shard in shards[:-1] if shard() is not None]
            assert not [tensor for tensor in tensors[:-4] if tensor() is not None]
            shard = make_shard(2 * number, ["cat", PROMPTS[number % 3]])
            part = shard.trajectories
            shards.append(weakref.ref(shard))
            held = (part.latents_BSCHW, part.log_probs_BA, part.timesteps_A2, *shard.conditioning.values())
            tensors.extend(weakref.ref(tensor) for tensor in held)
            yield shard

    joined = join_shards(read(), 12)
    assert len(joined.trajectories) == 12
    assert not [tensor for tensor in tensors if tensor() is not None]


def test_a_prompt_is_kept_once_whatever_the_length_of_the_texts_beside_it() -> None:
    def with_length(shard: RolloutShard, length: int) -> RolloutShard:
        rows = [torch.full((2 + PROMPTS.index(prompt), 4), 1.0) for prompt in shard.prompts]
        table = torch.zeros(len(rows), length, 4)
        for number, row in enumerate(rows):
            table[number, : len(row)] = row
        mask = table[:, :, 0].bool()
        return dataclasses.replace(shard, conditioning={"prompt_embeds": table, "prompt_mask": mask})

    short, long = make_shard(0, [PROMPTS[0], PROMPTS[1]]), make_shard(2, [PROMPTS[1], PROMPTS[2]])
    tables, index = join_conditioning([with_length(short, 3), with_length(long, 4)])
    assert index.tolist() == [0, 1, 1, 2]
    assert tables["prompt_mask"].sum(1).tolist() == [2, 3, 4]
    assert tables["prompt_mask"].dtype == torch.bool
    assert tables["prompt_embeds"].sum((1, 2)).tolist() == [8, 12, 16]
