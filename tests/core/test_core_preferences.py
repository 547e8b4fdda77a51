"""Pairs as losses: as published code has them, as they are written, and what they lead to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlcm_cli.core.preferences import (
    best_and_worst,
    clip_log_ratios,
    denoising_margins,
    preference_loss,
    preference_weights,
    trajectory_margins,
)

PARITY = Path(__file__).parent.parent / "data" / "parity"
PAIRS = torch.tensor([[0, 1], [3, 2]])


def read_table(name: str) -> dict[str, Any]:
    """Read results of published code, float64; its source stands in it."""
    return json.loads((PARITY / f"{name}.json").read_text())


def tensor(values: list[Any], shape: list[int] | None = None) -> Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    return found if shape is None else found.view(shape)


@pytest.mark.parametrize("case", read_table("dpo")["cases"], ids=lambda case: f"beta {case['beta']}")
def test_denoising_pairs_are_those_of_diffusion_dpo(case):
    table = read_table("dpo")
    new, base, target = (tensor(table[name], table["shape"]) for name in ("new", "base", "target"))
    new.requires_grad_()
    found = preference_loss(denoising_margins(new, base, target, case["beta"]))
    found.loss.backward()
    assert found.loss.item() == pytest.approx(case["loss"], rel=1e-12)
    assert found.metrics["accuracy"].item() == pytest.approx(case["accuracy"])
    torch.testing.assert_close(new.grad, tensor(case["gradient"], table["shape"]), rtol=1e-10, atol=1e-14)


def published_ratios(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves [2, P], the clipped log-ratios of the samples, all first ones and then the second, and the pairs."""
    table = read_table("pso")
    leaf, base = tensor(table["log_probs"]).requires_grad_(), tensor(table["base_log_probs"])
    count = leaf.shape[1]
    pairs = [(row, row + count) if first else (row + count, row) for row, first in enumerate(table["first_is_better"])]
    return leaf, clip_log_ratios((leaf - base).flatten(), case["clip_range"]), torch.tensor(pairs)


@pytest.mark.parametrize("case", read_table("pso")["cases"], ids=lambda case: f"beta {case['beta']}")
def test_pairs_of_single_actions_are_those_of_pso(case):
    leaf, log_ratios, pairs = published_ratios(case)
    loss = preference_loss(trajectory_margins(log_ratios, pairs, case["beta"])).loss
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-10)
    torch.testing.assert_close(leaf.grad, tensor(case["gradient"]), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("case", read_table("pso")["cases"], ids=lambda case: f"beta {case['beta']}")
def test_a_whole_trajectory_is_bounded_by_its_single_actions(case):
    """The four pairs of the table as the four actions of one pair: the published loss is of 4 times the beta."""
    _, log_ratios, pairs = published_ratios(case)
    by_action = log_ratios[pairs]
    whole = preference_loss(trajectory_margins(by_action.sum(0), torch.tensor([[0, 1]]), case["beta"] / 4)).loss
    assert whole.item() < case["loss"]


def test_weights_are_the_derivative_of_the_loss():
    log_ratios = tensor([0.3, -0.2, 0.1, 0.05])
    for beta in (1.0, 20.0):
        expected = torch.zeros(4, dtype=torch.float64)
        for better, worse in PAIRS.tolist():
            slope = -beta * torch.sigmoid(-beta * (log_ratios[better] - log_ratios[worse])) / len(PAIRS)
            expected[better] += slope
            expected[worse] -= slope
        torch.testing.assert_close(preference_weights(log_ratios, PAIRS, beta), expected, rtol=1e-8, atol=1e-14)


def test_the_gradient_of_denoising_pairs_is_that_of_their_definition():
    generator = torch.Generator().manual_seed(0)
    new, base, target = (torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    leaf, beta = new.clone().requires_grad_(), 3.0
    preference_loss(denoising_margins(leaf, base, target, beta)).loss.backward()
    expected = torch.zeros_like(new)
    for better, worse in ((0, 2), (1, 3)):
        gain = [
            (new[row] - target[row]).square().mean() - (base[row] - target[row]).square().mean()
            for row in (better, worse)
        ]
        push = torch.sigmoid(beta / 2 * (gain[0] - gain[1])) * beta / 2 / 2
        expected[better] = push * 2 * (new[better] - target[better]) / 9
        expected[worse] = -push * 2 * (new[worse] - target[worse]) / 9
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-8, atol=1e-14)


def test_the_best_and_the_worst_of_each_group_are_a_pair():
    scores = torch.tensor([[0.0, 2.0, -1.0], [1.0, 1.0, 1.0], [3.0, 3.0, 1.0]])
    assert best_and_worst(scores).tolist() == [[1, 2], [6, 8]]
    assert best_and_worst(torch.zeros(2, 2)).shape == (0, 2)


def test_there_is_no_gradient_beyond_the_clip_range():
    leaf = tensor([-0.3, -0.05, 0.0, 0.05, 0.3]).requires_grad_()
    clipped = clip_log_ratios(leaf, 0.1)
    clipped.sum().backward()
    assert leaf.grad.tolist() == [0, 1, 1, 1, 0]
    assert clipped.exp()[[0, 4]].tolist() == pytest.approx([0.9, 1.1])


@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_denoising_pairs_lead_to_the_known_optimum(beta):
    """A prediction p of any noised image, and images of which one is better in four pairs out of five.

    With targets 1 and 0 and a base model that predicts 0.3, a margin is beta (p − 0.3), so the optimum has
    σ(beta (p − 0.3)) = 0.8.
    """
    prediction = torch.full((), 0.3, dtype=torch.float64, requires_grad=True)
    better = tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    target = torch.cat([better, 1 - better]).view(-1, 1, 1, 1)
    optimizer = torch.optim.LBFGS([prediction], max_iter=50, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss() -> Tensor:
        optimizer.zero_grad()
        new, base = prediction.expand(10, 1, 1, 1), torch.full((10, 1, 1, 1), 0.3, dtype=torch.float64)
        found = preference_loss(denoising_margins(new, base, target, beta)).loss
        found.backward()
        return found

    optimizer.step(loss)
    assert prediction.item() == pytest.approx(0.3 + math.log(4) / beta, abs=1e-6)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_pairs_of_a_gaussian_lead_to_the_known_optimum(beta):
    """Of a Bradley-Terry preference for a log-linear reward, the optimum of DPO tilts the base model by reward / beta.

    The base model is N(0, 1), the reward of x is x: the optimum is N(1 / beta, 1) (arXiv 2305.18290, eq. 4).
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20000, 2, generator=generator, dtype=torch.float64)
    first = torch.rand(20000, generator=generator, dtype=torch.float64) < torch.sigmoid(images[:, 0] - images[:, 1])
    better = torch.where(first, images[:, 0], images[:, 1])
    worse = torch.where(first, images[:, 1], images[:, 0])
    mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([mean], max_iter=50)

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_ratios = torch.cat([-0.5 * (part - mean) ** 2 + 0.5 * part**2 for part in (better, worse)])
        pairs = torch.arange(40000).view(2, -1).T
        found = preference_loss(trajectory_margins(log_ratios, pairs, beta)).loss
        found.backward()
        return found

    optimizer.step(loss)
    # 20,000 pairs: the estimate of 1 scatters by 0.01.
    assert beta * mean.item() == pytest.approx(1.0, abs=0.05)
