import math

import pytest
import torch

from rlcm_cli.core.objectives import ppo_clip

CLIP = 0.2


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        # The gradient of −A · r by the log-probability is −A · r; where the clip acts it is 0.
        (2.0, 1.1, -2.2, -2.2),
        (2.0, 1.5, -2.4, 0.0),
        (2.0, 0.5, -1.0, -1.0),
        (-1.0, 0.9, 0.9, 0.9),
        (-1.0, 0.5, 0.8, 0.0),
        (-1.0, 1.5, 1.5, 1.5),
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_loss_and_gradient_by_hand(advantage, ratio, loss, gradient):
    log_prob = torch.tensor([-1.0 + math.log(ratio)], requires_grad=True)
    result = ppo_clip(log_prob, torch.tensor([-1.0]), torch.tensor([advantage]), CLIP)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-6)
    assert log_prob.grad.item() == pytest.approx(gradient, rel=1e-6)


def test_before_the_first_update_it_is_the_plain_policy_gradient():
    log_probs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.5, 2.0])
    result = ppo_clip(log_probs, log_probs.detach().clone(), advantages, 1e-4)
    result.loss.backward()
    torch.testing.assert_close(log_probs.grad, -advantages / 3)
    assert result.ratio_drift.item() == 0
    assert result.clip_fraction.item() == 0


def test_the_metrics_of_a_batch_by_hand():
    ratios = torch.tensor([1.0, 1.1, 0.5, 1.5])
    result = ppo_clip(ratios.log(), torch.zeros(4), torch.ones(4), CLIP)
    assert result.ratio.item() == pytest.approx(1.025)
    assert result.ratio_drift.item() == pytest.approx(0.5)
    assert result.clip_fraction.item() == 0.5
    assert result.approx_kl.item() == pytest.approx(0.5 * (ratios.log() ** 2).mean().item())
    assert result.loss.item() == pytest.approx(-(1.0 + 1.1 + 0.5 + 1.2) / 4)


def test_metrics_carry_no_gradient():
    log_probs = torch.tensor([-1.0], requires_grad=True)
    result = ppo_clip(log_probs, torch.tensor([-1.1]), torch.ones(1), CLIP)
    assert result.loss.requires_grad
    assert not any(value.requires_grad for value in (result.ratio_drift, result.approx_kl, result.clip_fraction))
