import hashlib

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from rlcm_cli.core.noise import derive_seed, draw_noise


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
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise = draw_noise(seeds, 5, shape)
    assert noise.shape == (3, 5, *shape)
    assert noise.dtype == torch.float32
    for call in range(5):
        assert torch.equal(noise[:, call], randn_tensor((3, *shape), generator=generators))


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
