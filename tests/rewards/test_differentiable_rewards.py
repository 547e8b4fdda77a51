"""The rewards that training can go through: the same values of float images, with a gradient that leads uphill."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from small_clip import save_small_clip
from transformers import AutoConfig

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards import REWARDS, RewardSpec, load_reward
from rlcm_cli.rewards.base.contract import Reward

PIXELS = ["mirror_symmetry", "rotational_symmetry", "brightness", "colourfulness", "sharpness"]
EMBEDDED = [*PIXELS, "recognition", "emoji_clip"]
PROMPTS = ["a cat", "a dog on red", "a fox"]


def pictures(count: int = 3, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Blobs of colour with some noise, away from black and white, uint8: noise alone is nothing to a network."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (40 + 170 * smooth + 5 * torch.rand(smooth.shape, generator=generator)).byte()


def floats(images: torch.Tensor) -> torch.Tensor:
    return images.float().requires_grad_()


def of(name: str, **settings: object) -> Reward:
    return load_reward(RewardSpec(name, settings))


def assert_differentiable(reward: Reward, images: torch.Tensor, prompts: list[str], step: float = 0.5) -> None:
    metadata = [{}] * len(images)
    pixels = floats(images)
    values = reward.score_floats(pixels, prompts, metadata)
    assert values.detach().cpu().tolist() == pytest.approx(
        reward.score(images, prompts, metadata).tolist(), rel=1e-5, abs=1e-5
    )
    (gradient,) = torch.autograd.grad(values.sum(), pixels)
    size = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.isfinite(gradient).all()
    assert (size > 0).all()
    # `step` levels a pixel, in the mean square.
    length = step * (images[0].numel() ** 0.5)
    moved = (pixels + length * gradient / size).detach().requires_grad_()
    gain = (reward.score_floats(moved, prompts, metadata) - values).detach().cpu()
    assert (gain > 0).all()


class TestEmbedded:
    @pytest.mark.parametrize("name", EMBEDDED)
    def test_values_and_ascent(self, name):
        settings = {"floor": -50.0} if name == "recognition" else {}
        assert_differentiable(of(name, **settings), pictures(), PROMPTS, step=0.02)

    @pytest.mark.parametrize("name", EMBEDDED)
    def test_other_sizes_are_resized_with_a_gradient(self, name):
        settings = {"floor": -50.0} if name == "recognition" else {}
        assert_differentiable(of(name, **settings), pictures(size=80), PROMPTS, step=0.02)

    @pytest.mark.parametrize("name", PIXELS)
    def test_the_gradient_is_the_difference_quotient(self, name):
        reward, pixels = of(name), floats(pictures(1, 8))
        (gradient,) = torch.autograd.grad(reward.score_floats(pixels, ["cat"], [{}]).sum(), pixels)
        direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
        # Luma is rounded in sharpness: over a wide step the rounding averages out.
        width = 20.0 if name == "sharpness" else 0.05
        ends = [reward.score_floats(pixels + sign * width * direction, ["cat"], [{}]).item() for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * width)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.03)

    @pytest.mark.parametrize("name", ["brightness", "colourfulness", "mirror_symmetry", "rotational_symmetry"])
    def test_a_plain_picture_has_a_finite_gradient(self, name):
        pixels = floats(torch.full((1, 3, 8, 8), 100, dtype=torch.uint8))
        values = of(name).score_floats(pixels, ["cat"], [{}])
        (gradient,) = torch.autograd.grad(values.sum(), pixels)
        assert torch.isfinite(gradient).all()

    def test_below_its_floor_recognition_has_no_gradient(self):
        pixels = floats(pictures())
        values = of("recognition", floor=-1e-4).score_floats(pixels, PROMPTS, [{}] * 3)
        (gradient,) = torch.autograd.grad(values.sum(), pixels)
        assert not gradient.any()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("differentiable-clip"))


class TestClip:
    @pytest.mark.parametrize("name", ["clip_score", "pick_score"])
    def test_similarity(self, name, clip):
        settings = {"processor": str(clip)} if name == "pick_score" else {}
        assert_differentiable(of(name, model=str(clip), **settings), pictures(), PROMPTS, step=0.02)

    def test_aesthetic(self, clip, tmp_path):
        projection = AutoConfig.from_pretrained(clip).projection_dim
        widths, head = [projection, 8, 8, 8, 8, 1], {}
        for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
            weight = torch.randn(after, before) / before**0.5
            head |= {f"layers.{place}.weight": weight, f"layers.{place}.bias": torch.zeros(after)}
        save_file(head, tmp_path / "head.safetensors")
        reward = of("aesthetic", model=str(clip), head=str(tmp_path / "head.safetensors"))
        assert_differentiable(reward, pictures(), PROMPTS, step=0.02)


class TestDeclared:
    def test_which_are(self):
        declared = {name for name, entry in REWARDS.items() if entry.differentiable}
        others = {"clip_score", "aesthetic", "pick_score", "hps_v2", "hps_v2_0", "image_reward"}
        others |= {"hpsv3", "vqa_score", "soft_tifa"}
        assert declared == {*EMBEDDED, *others}

    def test_uint8_images_take_no_gradient(self):
        assert not of("recognition").function(pictures(), PROMPTS, [{}] * 3).requires_grad

    def test_yours_says_so_itself(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "def redness(images, prompts, metadata):\n"
            "    return images[:, 0].float().mean((1, 2)) / 255\n"
            "redness.differentiable = True\n"
            "def whole(images, prompts, metadata):\n"
            "    return images[:, 0].byte().float().mean((1, 2)) / 255\n"
            "whole.differentiable = True\n"
            "def plain(images, prompts, metadata):\n"
            "    return images[:, 0].float().mean((1, 2)) / 255\n"
            "def variety(images, prompt, metadata):\n"
            "    return images.float().std(0).mean().repeat(len(images))\n"
            "variety.set_level = variety.differentiable = True\n"
        )
        loaded = {name: of(f"{tmp_path / 'mine.py'}:{name}") for name in ("redness", "whole", "plain", "variety")}
        assert {name: reward.differentiable for name, reward in loaded.items()} == {
            "redness": True,
            "whole": True,
            "plain": False,
            "variety": False,
        }
        assert_differentiable(loaded["redness"], pictures(), PROMPTS)
        with pytest.raises(RewardError, match="declared differentiable and returned numbers without a gradient"):
            loaded["whole"].score_floats(floats(pictures()), PROMPTS, [{}] * 3)

    def test_a_broken_value_is_refused(self):
        reward = Reward("mine", lambda images, prompts, metadata: images.mean((1, 2, 3)) / 0, differentiable=True)
        with pytest.raises(RewardError, match=r"returned inf for 3 of 3 samples"):
            reward.score_floats(floats(pictures()), PROMPTS, [{}] * 3)
