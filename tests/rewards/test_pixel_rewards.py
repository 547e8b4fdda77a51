import math

import numpy as np
import pytest
import torch

from rlcm_cli.rewards import RewardSpec, load_reward, pixels

NAMES = list(pixels.ENTRIES)


def score(name: str, images: torch.Tensor) -> torch.Tensor:
    return load_reward(RewardSpec(name)).score(images, ["a cat"] * len(images), [{}] * len(images))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def picture(rows: list[list[tuple[int, int, int]]]) -> torch.Tensor:
    """Make a batch of one image from its rows of RGB pixels."""
    return torch.tensor(rows, dtype=torch.uint8).permute(2, 0, 1)[None]


def grey(rows: list[list[int]]) -> torch.Tensor:
    return picture([[(value, value, value) for value in row] for row in rows])


def brightness_of(image: np.ndarray) -> float:
    red, green, blue = image.astype(float)
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue).mean() / 255


def colourfulness_of(image: np.ndarray) -> float:
    red, green, blue = image.astype(float)
    rg, yb = red - green, (red + green) / 2 - blue
    return math.sqrt(rg.std() ** 2 + yb.std() ** 2) + 0.3 * math.sqrt(rg.mean() ** 2 + yb.mean() ** 2)


def sharpness_of(image: np.ndarray) -> float:
    red, green, blue = image.astype(float)
    # Half a level goes up; np.round would give it to the even neighbour.
    luma = np.floor((2126 * red + 7152 * green + 722 * blue + 5000) / 10_000)
    padded = np.pad(luma, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * luma
    return laplacian.var()


REFERENCES = {"brightness": brightness_of, "colourfulness": colourfulness_of, "sharpness": sharpness_of}


class TestAgainstOneImageAtATimeInNumPy:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (2, 2), (5, 9), (64, 48), (300, 1000)])
    def test_noise_of_every_size(self, name, height, width):
        images = noise(3, 3, height, width, seed=height)
        images[1] //= 8
        expected = [REFERENCES[name](image.numpy()) for image in images]
        assert score(name, images).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def test_every_reward_has_a_reference(self):
        assert list(REFERENCES) == NAMES


class TestByHand:
    def test_brightness_weighs_the_channels(self):
        assert score("brightness", picture([[(255, 0, 0)]])).item() == pytest.approx(0.2126)
        # A red and a white pixel: (0.2126 + 1) / 2. Half a blue one: 0.0722 · 51 / 255.
        assert score("brightness", picture([[(255, 0, 0), (255, 255, 255)]])).item() == pytest.approx(0.6063)
        assert score("brightness", picture([[(0, 0, 51)]])).item() == pytest.approx(0.01444)

    def test_brightness_goes_from_0_to_1(self):
        assert score("brightness", torch.cat([grey([[0] * 5]), grey([[255] * 5])])).tolist() == [0.0, 1.0]

    def test_colourfulness_of_a_red_and_a_green_pixel(self):
        # rg = ±255, yb = 127.5 twice: spread 255 and 0, mean 0 and 127.5; 255 + 0.3 · 127.5.
        assert score("colourfulness", picture([[(255, 0, 0), (0, 255, 0)]])).item() == pytest.approx(293.25)

    def test_colourfulness_of_a_blue_and_a_yellow_pixel(self):
        # rg = 0 twice, yb = −255 and 255: spread 255, mean 0.
        assert score("colourfulness", picture([[(0, 0, 255), (255, 255, 0)]])).item() == pytest.approx(255)

    def test_colourfulness_of_a_plain_brown(self):
        # rg = 60, yb = 70 − 10 = 60, no spread: 0.3 · 60 √2.
        brown = picture([[(100, 40, 10)] * 4] * 3)
        assert score("colourfulness", brown).item() == pytest.approx(18 * math.sqrt(2))

    def test_grey_has_no_colour(self):
        assert score("colourfulness", noise(2, 1, 9, 9).expand(2, 3, 9, 9)).tolist() == [0.0, 0.0]

    def test_sharpness_of_a_dot(self):
        # −400 at the dot, 100 at its four sides, mean 0: (400² + 4 · 100²) / 9.
        assert score("sharpness", grey([[0, 0, 0], [0, 100, 0], [0, 0, 0]])).item() == pytest.approx(200_000 / 9)

    def test_sharpness_of_two_pixels(self):
        # 100 and −100: the edges repeat outside.
        assert score("sharpness", grey([[0, 100]])).item() == 10_000
        assert score("sharpness", grey([[0], [100]])).item() == 10_000

    def test_sharpness_sees_luma(self):
        # Red of 255 has a luma of 54.2, rounded to 54.
        assert score("sharpness", picture([[(0, 0, 0), (255, 0, 0)]])).item() == 54**2

    def test_plain_pictures_and_single_pixels_have_no_sharpness(self):
        assert score("sharpness", torch.cat([grey([[7] * 4] * 4), grey([[255] * 4] * 4)])).tolist() == [0.0, 0.0]
        assert score("sharpness", grey([[200]])).item() == 0

    def test_the_chequerboard_is_the_sharpest(self):
        board = grey([[255 * ((row + column) % 2) for column in range(64)] for row in range(64)])
        value = score("sharpness", board).item()
        assert 0.95 * 1020**2 < value <= 1020**2

    def test_a_blurred_picture_is_less_sharp(self):
        image = noise(1, 3, 32, 32)
        blurred = torch.nn.functional.avg_pool2d(image.float(), 3, stride=1, padding=1).byte()
        assert score("sharpness", blurred).item() < 0.2 * score("sharpness", image).item()


class TestBatches:
    @pytest.mark.parametrize("name", NAMES)
    def test_any_split_gives_the_same_bits(self, name):
        images = noise(23, 3, 31, 17)
        whole = score(name, images)
        for size in (1, 2, 7, 22):
            assert torch.equal(torch.cat([score(name, part) for part in images.split(size)]), whole)

    @pytest.mark.parametrize("name", NAMES)
    def test_parts_keep_their_order(self, name, monkeypatch):
        images = noise(9, 3, 6, 5)
        whole = score(name, images)
        for part in (1, 60, 100):
            monkeypatch.setattr(pixels, "_PART", part)
            assert torch.equal(score(name, images), whole)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_layout_in_memory_has_no_part(self, name):
        images = noise(4, 3, 12, 10)
        strided = noise(4, 3, 24, 20)
        strided[:, :, ::2, ::2] = images
        for same in (images.contiguous(memory_format=torch.channels_last), strided[:, :, ::2, ::2]):
            assert torch.equal(score(name, same), score(name, images))

    @pytest.mark.parametrize("name", NAMES)
    def test_an_empty_batch_gives_no_reward(self, name):
        assert score(name, noise(0, 3, 8, 8)).shape == (0,)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_images_stay_as_they_are(self, name):
        images = noise(2, 3, 8, 8)
        before = images.clone()
        score(name, images)
        assert torch.equal(images, before)
