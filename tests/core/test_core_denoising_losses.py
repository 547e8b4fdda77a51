"""Losses over noised images: as their published code has them, as they are written, and what they lead to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcm_cli.core.denoising_losses import awm_log_probs, nft_loss
from rlcm_cli.core.objectives import ppo_clip

PARITY = Path(__file__).parent.parent / "data" / "parity"
WANTED = 2.0
"""Where the reward of the toy is highest."""


def read_table(name: str) -> dict[str, Any]:
    """Read results of published code, float64; its source stands in it."""
    return json.loads((PARITY / f"{name}.json").read_text())


def tensor(values: list[float], shape: list[int] | None = None) -> Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    return found if shape is None else found.view(shape)


class TestNft:
    @pytest.mark.parametrize("case", read_table("nft")["cases"], ids=lambda case: f"beta {case['beta']}")
    def test_is_that_of_the_published_code(self, case):
        shape = read_table("nft")["shape"]
        images, noise, old = (tensor(case[name], shape) for name in ("images", "noise", "old"))
        new = tensor(case["new"], shape).requires_grad_()
        goodness = (0.5 + tensor(case["advantages"]) / (2 * case["advantage_range"])).clamp(0, 1)
        found = nft_loss(new, old, noise - images, tensor(case["levels"]), goodness, beta=case["beta"])
        loss = case["advantage_range"] * found.loss
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
        torch.testing.assert_close(new.grad, tensor(case["gradient"], shape), rtol=1e-10, atol=1e-12)

    def test_its_gradient_is_that_of_its_definition(self):
        generator = torch.Generator().manual_seed(0)
        new, old, target = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
        levels, goodness, beta = tensor([1.0, 0.4, 0.1]), tensor([0.0, 0.7, 1.0]), 0.3
        leaf = new.clone().requires_grad_()
        nft_loss(leaf, old, target, levels, goodness, beta=beta).loss.backward()
        expected = torch.zeros_like(new)
        for row in range(3):
            for share, sign in ((goodness[row], 1), (1 - goodness[row], -1)):
                error = levels[row] * (old[row] + sign * beta * (new[row] - old[row]) - target[row])
                # d/dnew of mean(e²) / (β · mean|e|), the divisor held
                slope = 2 * error * levels[row] * sign * beta / error.numel()
                expected[row] += share * slope / (beta * error.abs().mean()) / 3
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-8, atol=1e-12)

    def test_nothing_is_divided_by_zero(self):
        new = torch.ones(1, 1, 2, 2, requires_grad=True)
        loss = nft_loss(
            new, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1), torch.ones(1), beta=1.0
        ).loss
        loss.backward()
        assert loss.item() == 0
        assert new.grad.isfinite().all()

    def test_as_usual_teaches_nothing(self):
        old = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        new = old.clone().requires_grad_()
        nft_loss(new, old, torch.zeros_like(old), torch.ones(4), torch.full((4,), 0.5), beta=0.7).loss.backward()
        torch.testing.assert_close(new.grad, torch.zeros_like(old))


POWERS = {
    "Uniform": {"power": 1.0, "level_power": 0.0},
    "t": {"power": 1.0, "level_power": 1.0},
    "t**2": {"power": 1.0, "level_power": 2.0},
    "huber": {"power": 0.5, "level_power": 1.0},
    "ghuber": {"power": 0.25, "level_power": 1.0},
}
"""What the published code of AWM calls its weightings."""


class TestAwm:
    @pytest.mark.parametrize("case", read_table("awm")["cases"], ids=lambda case: case["weighting"])
    def test_is_that_of_the_published_code(self, case):
        table, powers = read_table("awm"), POWERS[case["weighting"]]
        images, noise, old = (tensor(table[name], table["shape"]) for name in ("images", "noise", "old"))
        new, levels = tensor(table["new"], table["shape"]).requires_grad_(), tensor(table["levels"])
        # Its "huber" is not divided by the power, and takes 1e-5 for the root of 1e-10.
        factor = 0.5 if case["weighting"] == "huber" else 1.0
        log_probs, old_log_probs = (
            factor * awm_log_probs(part, noise - images, levels, **powers) for part in (new, old)
        )
        torch.testing.assert_close(log_probs, tensor(case["log_probs"]), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(old_log_probs, tensor(case["old_log_probs"]), rtol=1e-9, atol=1e-12)
        loss = ppo_clip(log_probs, old_log_probs, tensor(table["advantages"]), case["clip_range"]).loss
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
        torch.testing.assert_close(new.grad, tensor(case["gradient"], table["shape"]), rtol=1e-8, atol=1e-12)

    def test_its_gradient_is_that_of_its_definition(self):
        generator = torch.Generator().manual_seed(0)
        new, target = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
        levels, leaf = tensor([1.0, 0.4, 0.1]), new.clone().requires_grad_()
        awm_log_probs(leaf, target, levels, power=0.25, level_power=1.0).sum().backward()
        expected = torch.zeros_like(new)
        for row in range(3):
            error = (new[row] - target[row]).square().mean()
            expected[row] = -levels[row] * (error + 1e-10) ** -0.75 * 2 * (new[row] - target[row]) / new[row].numel()
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-8, atol=1e-12)

    def test_no_error_has_a_finite_gradient(self):
        leaf = torch.ones(1, 1, 2, 2, requires_grad=True)
        awm_log_probs(leaf, torch.ones(1, 1, 2, 2), torch.ones(1), power=0.25, level_power=1.0).sum().backward()
        assert leaf.grad.isfinite().all()


class Toy:
    """Images of one number, N(mean, 0.3²), and the velocity that flow matching would learn of them exactly."""

    spread = 0.3

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Images [256], and how far the reward of each is above the usual, in standard deviations."""
        images = self.mean.detach() + self.spread * self.normal(256)
        rewards = -((images - WANTED) ** 2)
        return images, (rewards - rewards.mean()) / rewards.std()

    def normal(self, count: int) -> Tensor:
        return torch.randn(count, generator=self.generator, dtype=torch.float64)

    def noise(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noised images, levels and targets, [N, 1, 1, 1] but for the levels."""
        noise = self.normal(len(images))
        levels = torch.rand(len(images), generator=self.generator, dtype=torch.float64) * 0.9 + 0.05
        noised = (1 - levels) * images + levels * noise
        return noised.view(-1, 1, 1, 1), levels, (noise - images).view(-1, 1, 1, 1)

    def predict(self, mean: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        t = levels.view(-1, 1, 1, 1)
        away = (noised - (1 - t) * mean) / ((1 - t) ** 2 * self.spread**2 + t**2)
        return t * away - (mean + (1 - t) * self.spread**2 * away)

    def descend(self, loss: Tensor, rate: float) -> None:
        (slope,) = torch.autograd.grad(loss, self.mean)
        self.mean = (self.mean - rate * slope).detach().requires_grad_()


def test_nft_finds_the_mean_of_the_highest_reward():
    toy = Toy()
    for _ in range(60):
        images, advantages = toy.draw()
        noised, levels, target = toy.noise(images)
        old = toy.predict(toy.mean.detach(), noised, levels)
        new = toy.predict(toy.mean, noised, levels)
        goodness = (0.5 + advantages / 4).clamp(0, 1)
        toy.descend(nft_loss(new, old, target, levels, goodness, beta=1.0).loss, rate=0.5)
    assert toy.mean.item() == pytest.approx(WANTED, abs=0.15)


def test_awm_finds_the_mean_of_the_highest_reward():
    toy = Toy()
    for _ in range(60):
        images, advantages = toy.draw()
        noised, levels, target = toy.noise(images)
        log_probs = awm_log_probs(toy.predict(toy.mean, noised, levels), target, levels, power=1.0, level_power=1.0)
        toy.descend(ppo_clip(log_probs, log_probs.detach(), advantages, 1.0).loss, rate=0.5)
    assert toy.mean.item() == pytest.approx(WANTED, abs=0.15)
