import io

import numpy as np
import pytest
import torch
from PIL import Image

from rlcm_cli.rewards import RewardSpec, load_reward, score_images
from rlcm_cli.rewards.compressibility import jpeg_kilobytes


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_size_is_that_of_a_file_that_pillow_saves(tmp_path):
    image = noise(3, 24, 40)
    Image.fromarray(np.moveaxis(image.numpy(), 0, -1)).save(tmp_path / "x.jpg", quality=95)
    assert jpeg_kilobytes(image) == (tmp_path / "x.jpg").stat().st_size / 1000
    with Image.open(tmp_path / "x.jpg") as saved:
        assert saved.size == (40, 24)


def test_channels_are_not_mixed_up():
    # Pillow's own drawing, pure red: another channel order or quality gives other bytes.
    buffer = io.BytesIO()
    red = Image.new("RGB", (64, 64), (250, 10, 30))
    red.paste((0, 0, 255), (10, 20, 30, 60))
    red.save(buffer, "JPEG", quality=95)
    image = torch.from_numpy(np.array(red)).permute(2, 0, 1)
    assert jpeg_kilobytes(image) == len(buffer.getvalue()) / 1000
    assert jpeg_kilobytes(image.flip(0)) != len(buffer.getvalue()) / 1000


def test_a_grey_block_is_the_size_counted_by_hand():
    # SOI 2, APP0 18, two DQT 69 each, SOF0 19, four DHT (33 + 183 twice) 432, SOS 14, EOI 2 make 625 bytes.
    # One 8 × 8 block a channel (padded to 16 × 16: four blocks of luma) of zeros: 4 × (2 + 4) + 2 × (2 + 2)
    # = 32 bits, 4 bytes.
    assert jpeg_kilobytes(torch.full((3, 8, 8), 128, dtype=torch.uint8)) == 0.629


@pytest.mark.parametrize(("name", "sign"), [("compressibility", -1), ("incompressibility", 1)])
def test_rewards_are_kilobytes_with_their_sign(name, sign):
    images = torch.stack([torch.zeros(3, 16, 16, dtype=torch.uint8), noise(3, 16, 16)])
    rewards = score_images(load_reward(RewardSpec(name)), name, images, ["a", "b"], [{}, {}])
    expected = torch.tensor([sign * jpeg_kilobytes(image) for image in images], dtype=torch.float32)
    assert torch.equal(rewards, expected)
    assert sign * (rewards[1] - rewards[0]) > 0.2


def test_an_empty_batch_gives_no_reward():
    reward = load_reward(RewardSpec("compressibility"))
    assert score_images(reward, "compressibility", noise(0, 3, 8, 8), [], []).shape == (0,)
