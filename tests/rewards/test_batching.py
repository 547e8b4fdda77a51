"""Requests of concurrent clients, joined into calls of one reward function."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards import Reward
from rlcm_cli.rewards.remote.batching import Batcher
from rlcm_cli.rewards.remote.protocol import Batch


def batch(*values, prompt="x"):
    pixels = np.array(values, np.uint8)[:, None, None, None].repeat(3, 1)
    return Batch(pixels, [prompt] * len(values), [{"group": 0}] * len(values))


def score(*batches, most=100, wait=5.0, set_level=False):
    """Score requests at the same time; return what each got, and the images of each call."""
    calls = []

    def function(images, prompts, metadata):
        calls.append(len(images))
        if "bad" in prompts:
            raise RewardError("no")
        return images[:, 0, 0, 0].float()

    async def together():
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher(
                Reward("r", function, set_level=set_level),
                worker,
                device=torch.device("cpu"),
                most=most,
                wait=wait,
                observe=lambda count, seconds: None,
            )
            asked = [asyncio.create_task(batcher.score(one)) for one in batches]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert batcher.waiting == 0
            return found

    found = asyncio.run(together())
    return [one if isinstance(one, Exception) else one.tolist() for one in found], calls


def test_requests_are_joined_and_parted_again():
    assert score(batch(1, 2), batch(3), most=3) == ([[1, 2], [3]], [3])


def test_a_call_has_no_more_than_the_most():
    found, calls = score(batch(1, 2), batch(3), batch(4, 5, 6, 7), most=2, wait=0.0)
    assert found == [[1, 2], [3], [4, 5, 6, 7]]
    assert calls == [2, 1, 4]


def test_requests_to_a_reward_of_groups_are_not_joined():
    assert score(batch(1, 2), batch(3, 4), set_level=True) == ([[1, 2], [3, 4]], [2, 2])


def test_a_fault_stays_with_its_request():
    (first, second), calls = score(batch(1), batch(2, prompt="bad"), most=2)
    assert first == [1]
    assert str(second) == "no"
    assert calls == [2, 1, 1]


def test_images_of_two_sizes_are_not_joined():
    wide = Batch(np.zeros((1, 3, 1, 2), np.uint8), ["x"], [{}])
    assert score(batch(1), wide, wait=0.0)[1] == [1, 1]


def test_what_the_reward_raises_is_raised():
    with pytest.raises(RewardError, match="no"):
        raise score(batch(1, prompt="bad"), wait=0.0)[0][0]
