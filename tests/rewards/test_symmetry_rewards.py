import io

import numpy as np
import pytest
import torch
from PIL import Image

from rlcm_cli.rewards import RewardSpec, load_reward, pixels, symmetry

NAMES = list(symmetry.ENTRIES)
TURNED = {"mirror_symmetry": (-1,), "rotational_symmetry": (-2, -1)}
"""The dimensions that each reward turns around."""


def score(name: str, images: torch.Tensor) -> torch.Tensor:
    return load_reward(RewardSpec(name)).score(images, ["a cat"] * len(images), [{}] * len(images))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def symmetric(name: str, image: torch.Tensor) -> torch.Tensor:
    return ((image.int() + image.int().flip(TURNED[name])) // 2).byte()


def grey(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8).expand(1, 3, -1, -1)


def plain(*colour: int) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)


class TestCorrelation:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(("height", "width"), [(1, 7), (7, 1), (2, 2), (5, 9), (48, 64), (300, 1000)])
    def test_it_is_pearsons_of_the_centred_channels(self, name, height, width):
        images = noise(4, 3, height, width, seed=width)
        images[1] = symmetric(name, images[1])
        images[2] //= 3
        expected = []
        for image in images.numpy():
            centred = image - image.mean((1, 2), keepdims=True)
            expected.append(np.corrcoef(centred.ravel(), np.flip(centred, TURNED[name]).ravel())[0, 1])
        assert score(name, images).tolist() == pytest.approx(expected, abs=1e-6)

    def test_a_row_by_hand(self):
        # Mean 50; (−50, −50, 150, −50) · (−50, 150, −50, −50) = −10,000; squares 30,000.
        row = grey([0, 0, 200, 0])
        assert score("mirror_symmetry", row).item() == pytest.approx(-1 / 3)
        assert score("rotational_symmetry", row).item() == pytest.approx(-1 / 3)

    def test_a_square_by_hand(self):
        # Each mirrors its negative in one direction and turns into itself.
        diagonal = grey([200, 0], [0, 200])
        assert score("mirror_symmetry", diagonal).item() == -1
        assert score("rotational_symmetry", diagonal).item() == 1

    def test_channels_are_compared_with_themselves(self):
        # Red at the left, green at the right: grey all over, and no mirror image.
        image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
        image[:, 0, :, :2] = 200
        image[:, 1, :, 2:] = 200
        assert score("mirror_symmetry", image).item() == -1

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("width", [8, 9])
    def test_perfect_symmetry_is_exactly_1_and_no_other_symmetry(self, name, width):
        image = symmetric(name, noise(1, 3, 6, width))
        values = {other: score(other, image).item() for other in NAMES}
        assert values.pop(name) == 1
        assert max(values.values()) < 0.5

    def test_a_ramp_is_the_negative_of_its_mirror_image(self):
        ramp = grey(*[list(range(0, 256, 5))] * 10)
        assert score("mirror_symmetry", ramp).item() == -1
        assert score("rotational_symmetry", ramp).item() == -1
        assert score("mirror_symmetry", ramp.transpose(2, 3)).item() == 1

    @pytest.mark.parametrize("name", NAMES)
    def test_unrelated_halves_have_none(self, name):
        assert score(name, noise(8, 3, 64, 64)).abs().max() < 0.05


class TestPlainPicturesWinNothing:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 128, 0), (0, 0, 255)])
    def test_a_plain_picture_gets_0(self, name, colour):
        assert score(name, plain(*colour)).item() == 0

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1)])
    def test_the_smallest_plain_pictures_get_0(self, name, size):
        assert score(name, torch.full((1, 3, *size), 90, dtype=torch.uint8)).item() == 0

    @pytest.mark.parametrize("name", NAMES)
    def test_faint_ripples_get_next_to_nothing(self, name):
        # As symmetric or antisymmetric as can be, but nobody sees it: ±1 is a contrast of 1, 1 / 100 of the floor's.
        waves = torch.tensor([[129, 127], [127, 129]], dtype=torch.uint8).repeat(8, 8)
        assert abs(score(name, waves.expand(1, 3, -1, -1)).item()) == pytest.approx(0.01)
        single = plain(200, 100, 50).clone()
        single[0, 0, 3, 4] += 3
        assert abs(score(name, single).item()) < 1e-4

    @pytest.mark.parametrize("name", NAMES)
    def test_a_jpeg_of_a_plain_picture_gets_next_to_nothing(self, name):
        buffer = io.BytesIO()
        grain = (noise(64, 64, 3).int() % 5 + 198).byte()
        Image.fromarray(grain.numpy()).save(buffer, "JPEG", quality=95)
        image = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None]
        assert image.float().std() > 0
        assert score(name, image).abs().item() < 0.05

    def test_the_floor_is_a_contrast_of_10(self):
        # ±10 around 128 is at the floor and counts in full, ±5 a quarter, and nothing changes above.
        stripes = torch.tensor([-1, 1]).repeat_interleave(8).repeat(16, 1)
        images = torch.stack([(128 + stripes * c).byte().expand(3, -1, -1) for c in (5, 10, 11, 100)])
        assert score("mirror_symmetry", images).tolist() == [-0.25, -1, -1, -1]

    @pytest.mark.parametrize("name", NAMES)
    def test_fading_to_plain_never_pays(self, name):
        image = symmetric(name, noise(1, 3, 32, 32)).float()
        faded = torch.cat([(128 + (image - 128) * share).byte() for share in (1, 0.5, 0.2, 0.1, 0.02, 0)])
        values = score(name, faded)
        assert values[0] == 1
        assert (values.diff() <= 0).all()
        assert values[-1] == 0


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
        monkeypatch.setattr(pixels, "_PART", 60)
        assert torch.equal(score(name, images), whole)

    @pytest.mark.parametrize("name", NAMES)
    def test_an_empty_batch_gives_no_reward(self, name):
        assert score(name, noise(0, 3, 8, 8)).shape == (0,)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_whole_row_of_white_does_not_overflow(self, name):
        # The widest row that 32 bits hold; half of it black, so that there is something to correlate.
        image = torch.full((1, 3, 2, 33_000), 255, dtype=torch.uint8)
        image[..., 8_250:-8_250] = 0
        assert score(name, image).item() == 1
