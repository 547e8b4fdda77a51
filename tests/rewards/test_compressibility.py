import io
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.rewards.base import threads
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


def score(name: str, images: torch.Tensor) -> torch.Tensor:
    return load_reward(RewardSpec(name)).score(images, ["a cat"] * len(images), [{}] * len(images))


def size_by_pillow(image: torch.Tensor) -> float:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
    return len(buffer.getvalue()) / 1000


@pytest.mark.parametrize(("name", "sign"), [("compressibility", -1), ("incompressibility", 1)])
def test_rewards_are_kilobytes_with_their_sign(name, sign):
    images = torch.stack([torch.zeros(3, 16, 16, dtype=torch.uint8), noise(3, 16, 16)])
    rewards = score(name, images)
    expected = torch.tensor([sign * jpeg_kilobytes(image) for image in images], dtype=torch.float32)
    assert torch.equal(rewards, expected)
    assert sign * (rewards[1] - rewards[0]) > 0.2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (17, 3), (64, 48)])
def test_a_batch_has_the_sizes_that_pillow_gives_in_order(height, width):
    images = noise(40, 3, height, width)
    for index in range(40):
        # Plainer and plainer, so that neighbours differ in size.
        images[index] = images[index] // (index + 1)
    expected = [size_by_pillow(image) for image in images]
    assert score("incompressibility", images).tolist() == pytest.approx(expected, rel=1e-7)
    assert score("incompressibility", images.flip(0)).tolist() == pytest.approx(expected[::-1], rel=1e-7)


def test_an_image_that_takes_longest_keeps_its_place():
    images = torch.zeros(12, 3, 256, 256, dtype=torch.uint8)
    images[0] = noise(3, 256, 256)
    sizes = score("incompressibility", images)
    assert sizes[0] == pytest.approx(size_by_pillow(images[0]))
    assert torch.equal(sizes[1:], sizes[1:2].expand(11))


def test_any_split_gives_the_same_sizes():
    images = noise(11, 3, 24, 24)
    parts = [score("compressibility", part) for part in torch.split(images, 4)]
    assert torch.equal(torch.cat(parts), score("compressibility", images))


def test_the_layout_in_memory_has_no_part():
    images = noise(3, 3, 20, 12)
    strided = noise(3, 3, 40, 24)
    strided[:, :, ::2, ::2] = images
    for same in (images.contiguous(memory_format=torch.channels_last), strided[:, :, ::2, ::2]):
        assert torch.equal(score("compressibility", same), score("compressibility", images))


def test_images_are_encoded_side_by_side(monkeypatch):
    # Who saves waits for another who saves, and one thread alone would wait for ever.
    monkeypatch.setattr(threads, "_pool", cache(lambda: ThreadPoolExecutor(2)))
    meeting = threading.Barrier(2, timeout=10)
    save = Image.Image.save

    def save_together(*arguments, **settings):
        meeting.wait()
        save(*arguments, **settings)

    monkeypatch.setattr(Image.Image, "save", save_together)
    assert score("compressibility", noise(6, 3, 8, 8)).shape == (6,)


def test_an_empty_batch_gives_no_reward():
    assert score("compressibility", noise(0, 3, 8, 8)).shape == (0,)
