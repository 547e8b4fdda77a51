import hashlib

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from rlcm_cli.core.noise import derive_seed, draw_noise, seed_generator


def test_a_seed_is_the_head_of_a_sha256():
    assert derive_seed(7, "train", 3, 11) == 2864512255860549224
    digest = hashlib.sha256(b"7/train/3/11").hexdigest()
    assert derive_seed(7, "train", 3, 11) == int(digest[:16], 16) // 2


def test_a_seed_depends_on_every_argument():
    seeds = [
        derive_seed(7, "train", 3, 11),
        derive_seed(8, "train", 3, 11),
        derive_seed(7, "eval", 3, 11),
        derive_seed(7, "train", 4, 11),
        derive_seed(7, "train", 3, 12),
        derive_seed(7, "train", 31, 1),
        derive_seed(7, "train", 11, 3),
        derive_seed(7, "train", 3),
    ]
    assert len(set(seeds)) == len(seeds)


def test_every_seed_is_one_that_torch_takes():
    seeds = [derive_seed(0, "train", 0, sample) for sample in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62, "the upper bits are used"
    torch.Generator("cpu").manual_seed(2**63 - 1)


def test_noise_follows_the_convention_of_diffusers():
    seeds, shape = [3, 2**62 + 5, 3], (4, 8, 8)
    generators = [seed_generator(seed) for seed in seeds]
    noise = draw_noise(seeds, 5, shape)
    assert noise.shape == (3, 5, *shape)
    assert noise.dtype == torch.float32
    for call in range(5):
        assert torch.equal(noise[:, call], randn_tensor((3, *shape), generator=generators))


@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**32 - 1])
def test_a_seed_of_32_bits_draws_what_torch_draws(seed):
    expected = torch.randn(4, 8, 8, generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(draw_noise([seed], 1, (4, 8, 8))[0, 0], expected)


@pytest.mark.parametrize("seed", [2**32, 2**32 + 5, 2**62 + 1, 2**63 - 1, 2**64 - 1])
def test_a_larger_seed_is_that_of_the_mersenne_twister_of_both_halves(seed):
    # Any other place of the words in the state of torch's generator would give other numbers.
    halves = np.random.RandomState([seed % 2**32, seed // 2**32])
    words = halves.randint(0, 2**32, size=2000, dtype=np.uint32).astype(np.int64)
    drawn = torch.rand(2000, generator=seed_generator(seed))  # the low 24 bits of each word
    assert torch.equal((drawn * 2**24).long(), torch.from_numpy(words % 2**24))


def test_seeds_that_differ_in_the_upper_half_only_draw_unrelated_noise():
    seeds = [5, 5 + 2**32, 5 + 2**33, 5 + 2**62]
    rows = draw_noise(seeds, 1, (4, 64, 64)).flatten(1)
    # Of 16,384 independent pairs the correlation's deviation is 0.008.
    assert (rows.corrcoef() - torch.eye(len(seeds))).abs().max() < 0.04
    assert rows.mean(1).abs().max() < 0.04
    assert (rows.std(1) - 1).abs().max() < 0.04


@pytest.mark.parametrize("batch", [[5], [1, 5, 9], [9, 8, 7, 6, 5]])
def test_a_row_of_noise_depends_on_its_seed_alone(batch):
    expected = draw_noise([5], 3, (4, 8, 8))[0]
    assert torch.equal(draw_noise(batch, 3, (4, 8, 8))[batch.index(5)], expected)


def test_noise_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    draw_noise([1, 2], 2, (4, 8, 8))
    drawn = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn(3))
