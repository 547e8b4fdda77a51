"""Pairs of images of a prompt, of which one is better, as a loss (DPO, arXiv 2305.18290).

Shape suffixes in prose: P pairs, M samples, A actions of a trajectory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlcm_cli.core.objectives import ObjectiveResult


def preference_loss(margins: Tensor) -> ObjectiveResult:
    """Return −mean(log σ(margin)); margins, float [P], say how much more than the base model the policy prefers right.

    The metric `accuracy` is the share of pairs that it prefers rightly.
    """
    return ObjectiveResult(-logsigmoid(margins).mean(), {"accuracy": (margins.detach() > 0).double().mean()})


def denoising_margins(new: Tensor, base: Tensor, target: Tensor, beta: float) -> Tensor:
    """Return the margins of pairs by how well they are denoised (Diffusion-DPO, arXiv 2311.12908, eq. 14), float [P].

    With e the mean squared error of an image, those of the better w and the worse l with the same noise at the same
    time: −½ β ((e_w − e_w of the base model) − (e_l − e_l of the base model)).

    Args:
        new: Predictions of the policy, [2 P, C, h, w]: of the better ones, then of the worse ones.
        base: Those of the base model, likewise.
        target: What fits each image and its noise, likewise.
        beta: β > 0; of a mean over the latents, as in the published code.
    """

    def errors(prediction: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).mean(1)

    better, worse = (errors(new) - errors(base)).chunk(2)
    return -0.5 * beta * (better - worse)


def trajectory_margins(log_ratios: Tensor, pairs: Tensor, beta: float) -> Tensor:
    """Return the margins of pairs by the log-ratios of their trajectories (PSO, arXiv 2410.03190), float [P].

    β (ℓ_w − ℓ_l), with ℓ the sum over actions of log π / π_base.

    Args:
        log_ratios: ℓ, float [M].
        pairs: Rows of the better and the worse, int64 [P, 2].
        beta: β > 0.
    """
    return beta * (log_ratios[pairs[:, 0]] - log_ratios[pairs[:, 1]])


def clip_log_ratios(log_ratios: Tensor, clip_range: float) -> Tensor:
    """Return log-ratios of single actions, cut to those of 1 ± clip_range, beyond which they have no gradient."""
    return log_ratios.clamp(math.log1p(-clip_range), math.log1p(clip_range))


def preference_weights(log_ratios: Tensor, pairs: Tensor, beta: float) -> Tensor:
    """Derivative of the loss of `trajectory_margins` by each sample's log-ratio, float [M].

    The gradient of the loss is that of Σᵢ wᵢ ℓᵢ with these wᵢ held fixed, which is linear in the log-probabilities of
    single actions and so can be taken a micro-batch at a time: see `objectives.rebel_weights`.
    """
    with torch.enable_grad():
        leaf = log_ratios.detach().clone().requires_grad_()
        loss = preference_loss(trajectory_margins(leaf, pairs, beta)).loss
    return torch.autograd.grad(loss, leaf)[0]


def best_and_worst(scores: Tensor) -> Tensor:
    """Pair the best of each group with its worst, int64 [P, 2], as indices into the flattened scores [G, K].

    Of equal ones the first; a group whose scores are all equal has no pair.
    """
    groups, size = scores.shape
    first = torch.arange(groups) * size
    best, worst = scores.argmax(1), scores.argmin(1)
    differ = scores.amax(1) > scores.amin(1)
    return torch.stack([first + best, first + worst], dim=1)[differ]
