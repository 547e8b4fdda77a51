"""Losses over stored samples. Each gives its loss with a record of named metrics.

`ppo_clip`, `dppo`, `grpo_guard` and `reinforce` are means over transitions, so that a trainer may add up their
gradient a micro-batch at a time. The losses that look at whole samples reach the trainer as weights of `reinforce`:
`rebel_weights`, `rwr_weights` and `rwr_sparse_weights` say how.

Shape suffixes in prose: N transitions, M samples of an optimizer step, B samples of a round, A actions of a
trajectory, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObjectiveResult:
    """Loss and diagnostics of one batch."""

    loss: Tensor
    """Scalar, to be minimised; carries the gradient."""
    metrics: dict[str, Tensor]
    """Scalars without gradient, means over the batch but for `ratio_drift`.

    `ratio` (new probability over old), `ratio_drift` (the LARGEST |ratio − 1|), `approx_kl` (½ (log ratio)²,
    Schulman's estimator of KL(old ‖ new)), and what an objective adds.
    """


def ppo_clip(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> ObjectiveResult:
    """Clipped surrogate of PPO (arXiv 1707.06347), eq. 7, as a loss.

    All tensors float32 [N]; `log_probs` carries the gradient. Adds the metric `clip_fraction`, the share of
    ratios outside the clip range.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    outside = (ratio.detach() - 1).abs() > clip_range
    return ObjectiveResult(loss, {**_ratio_metrics(log_ratio), "clip_fraction": outside.float().mean()})


def dppo(log_ratios: Tensor, kl: Tensor, advantages: Tensor, max_kl: float) -> ObjectiveResult:
    """−A·ρ, masked where the policy is too far from the old one and the update goes outward (Flow-DPPO, 2606.11025).

    ρ = exp(log ratio). Outward: A > 0 and ρ > 1, or A < 0 and ρ < 1 (eq. 18). All tensors float [N]; `log_ratios`
    carries the gradient. Adds the metrics `policy_kl` and `masked_fraction`, the share of transitions without a
    gradient.

    Args:
        log_ratios: log π(a) − log π_old(a) of the stored actions.
        kl: KL divergence of the two Gaussians of each transition (eq. 14), of the same reduction over latents as the
            log-ratios. The published code takes the mean, and its threshold belongs to that.
        advantages: A of each transition's sample.
        max_kl: δ, from which on an update outward is masked.
    """
    far = kl.detach() >= max_kl
    masked = far & (advantages * log_ratios.detach() > 0)
    # Before the exponential: 0 times the gradient of a ratio that overflows would be NaN.
    loss = torch.where(masked, 0.0, -advantages * log_ratios.masked_fill(masked, 0.0).exp()).mean()
    measured = {"policy_kl": kl.detach().mean(), "masked_fraction": masked.float().mean()}
    return ObjectiveResult(loss, {**_ratio_metrics(log_ratios), **measured})


def grpo_guard(
    log_ratios: Tensor, kl: Tensor, std: Tensor, gains: Tensor, advantages: Tensor, clip_range: float
) -> ObjectiveResult:
    """Clipped surrogate with a ratio of mean 1 at every call, each call's loss divided by its gain (2510.22319).

    ρ = exp((log ratio + KL) · std). As log ratio + KL = (a − μ_old)(μ − μ_old) / std², this ρ has neither the bias of
    PPO's below 1 nor its wider spread at calls with little noise. What differs is the gain |b| of a call, by which the
    mean goes with the model's output. GRPO-Guard divides by dt, which is |b| but for a factor 1 + η²/2 in Flow-SDE.
    All tensors float [N]; `log_ratios` and `kl` carry the gradient. Adds the metrics `guarded_ratio`, `policy_kl` and
    `clip_fraction`.

    Args:
        log_ratios: log π(a) − log π_old(a) of the stored actions.
        kl: KL divergence of the two Gaussians of each transition, of the same reduction.
        std: Standard deviation of each transition.
        gains: |b| of each transition: how far its mean goes with the model's output; above 0.
        advantages: A of each transition's sample.
        clip_range: How far ρ may be from 1.
    """
    ratio = ((log_ratios + kl) * std).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = (torch.maximum(-advantages * ratio, -advantages * clipped) / gains).mean()
    measured = {
        "guarded_ratio": ratio.detach().mean(),
        "policy_kl": kl.detach().mean(),
        "clip_fraction": ((ratio.detach() - 1).abs() > clip_range).float().mean(),
    }
    return ObjectiveResult(loss, {**_ratio_metrics(log_ratios), **measured})


def reinforce(log_probs: Tensor, old_log_probs: Tensor, weights: Tensor) -> ObjectiveResult:
    """Weighted log-likelihood −mean(weights · log_probs), all tensors float32 [N].

    With advantages as weights it is the score-function policy gradient (DDPO_SF of arXiv 2305.13301, section 4.3).
    That holds for samples of the policy itself only: nothing corrects for what earlier updates of the iteration
    changed, and `old_log_probs` only serve the metrics.
    """
    return ObjectiveResult(-(weights * log_probs).mean(), _ratio_metrics(log_probs - old_log_probs))


def rebel_loss(log_ratios: Tensor, advantages: Tensor, pairs: Tensor, rebel_lr: float) -> ObjectiveResult:
    """Regress differences of advantages on differences of log-ratios (REBEL, arXiv 2404.16767, algorithm 1).

    The mean over pairs (y, y′) of (rebel_lr · [ℓ(y) − ℓ(y′)] − [A(y) − A(y′)])², where ℓ = log π/π_old of a whole
    trajectory is the sum over its actions. `rebel_lr` is the paper's 1/η. Log-probabilities that are means over
    the D latent dimensions make ℓ smaller by D, which is a `rebel_lr` smaller by D for the true ones.

    Args:
        log_ratios: ℓ, float [M]; carries the gradient.
        advantages: A, float [M]. Only differences within a pair count, so rewards do as well.
        pairs: Rows of y and y′, int64 [P, 2], P ≥ 1.
        rebel_lr: Advantage that a log-ratio of 1 stands for.

    Returns:
        The loss, and the metrics of the trajectories' ratios.
    """
    gaps = log_ratios[pairs[:, 0]] - log_ratios[pairs[:, 1]]
    targets = advantages[pairs[:, 0]] - advantages[pairs[:, 1]]
    return ObjectiveResult(((rebel_lr * gaps - targets) ** 2).mean(), _ratio_metrics(log_ratios))


def rebel_weights(log_ratios: Tensor, advantages: Tensor, pairs: Tensor, rebel_lr: float) -> Tensor:
    """Derivative of `rebel_loss` by each sample's log-ratio, float [M]: what a second pass weighs samples by.

    A first pass without gradient gives `log_ratios`. Since ℓᵢ = Σ_a (log_probᵢₐ − old_log_probᵢₐ), the gradient of
    the loss is that of Σᵢ wᵢ Σ_a log_probᵢₐ with these wᵢ held fixed, which is linear in the log-probabilities and
    so can be taken a micro-batch at a time: `reinforce` over the N = M · A transitions of the optimizer step, with
    the weight −N · wᵢ for each transition of sample i. Its loss is not REBEL's; only its gradient is.
    """
    with torch.enable_grad():
        leaf = log_ratios.detach().clone().requires_grad_()
        loss = rebel_loss(leaf, advantages, pairs, rebel_lr).loss
    return torch.autograd.grad(loss, leaf)[0]


def neighbour_pairs(groups: Tensor) -> Tensor:
    """Pair neighbours of a group: its first sample with its second, its third with its fourth, and so on.

    `groups`: int64 [M], the group of each sample, in any order. Gives rows int64 [P, 2], group by group; the last
    sample of a group of odd size is in no pair.
    """
    order = groups.argsort(stable=True)
    sizes = torch.unique_consecutive(groups[order], return_counts=True)[1]
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    member = torch.arange(len(groups), device=groups.device) - starts
    first = ((member % 2 == 0) & (member + 1 < sizes.repeat_interleave(sizes))).nonzero().squeeze(1)
    return torch.stack([order[first], order[first + 1]], dim=1)


def rwr_weights(advantages: Tensor, beta: float) -> Tensor:
    """Weights of reward-weighted regression, exp(beta · A) / Z over a whole round, float [B]; their sum is 1.

    RWR of arXiv 2305.13301, section 4.2; its published code takes beta = 0.2 of the rewards as they are, in kB of a
    JPEG say. `beta` is in the inverse of their unit: with advantages of variance 1, 0.2 weighs all samples nearly
    alike. Its loss is the weighted likelihood of the stored actions, −Σᵢ wᵢ · mean_a(log_probᵢₐ): that is `reinforce`
    over all transitions with the weight B · wᵢ for each of sample i. Those weights have mean 1 over the round, so a
    minibatch of it estimates the same loss, and as it is a likelihood, old samples may be used again and again.
    """
    return torch.softmax(beta * advantages, dim=0)


def rwr_sparse_weights(advantages: Tensor, share: float) -> Tensor:
    """Weights of RWR-sparse: equal for the best `share` of a round (0 < share ≤ 1) and 0 for the others, float [B].

    At least one sample is kept, and of equal ones the earlier; the sum is 1. Section 4.2 of arXiv 2305.13301, there
    with the top 10 %. Used as those of `rwr_weights`.
    """
    kept = max(1, round(share * len(advantages)))
    best = advantages.argsort(descending=True, stable=True)[:kept]
    weights = torch.zeros_like(advantages)
    weights[best] = 1 / kept
    return weights


def _ratio_metrics(log_ratio: Tensor) -> dict[str, Tensor]:
    log_ratio = log_ratio.detach()
    ratio = log_ratio.exp()
    return {
        "ratio": ratio.mean(),
        "ratio_drift": (ratio - 1).abs().max(),
        "approx_kl": 0.5 * (log_ratio**2).mean(),
    }
