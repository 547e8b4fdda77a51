"""Losses over stored transitions. Each gives its loss with a record of named metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PpoResult:
    """Loss and diagnostics of one batch of transitions; every metric is a mean over the batch."""

    loss: Tensor
    """Scalar, to be minimised; carries the gradient."""
    ratio: Tensor
    """Scalar."""
    ratio_drift: Tensor
    """Scalar, the LARGEST |ratio − 1| of the batch."""
    approx_kl: Tensor
    """Scalar, ½ (log ratio)²: Schulman's first estimator of KL(old ‖ new)."""
    clip_fraction: Tensor
    """Scalar, share of ratios outside the clip range."""


def ppo_clip(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> PpoResult:
    """Clipped surrogate of PPO (arXiv 1707.06347), eq. 7, as a loss.

    All arguments float32 [N]; `log_probs` carries the gradient.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    with torch.no_grad():
        drift = (ratio - 1).abs()
        return PpoResult(
            loss=loss,
            ratio=ratio.mean(),
            ratio_drift=drift.max(),
            approx_kl=0.5 * (log_ratio**2).mean(),
            clip_fraction=(drift > clip_range).float().mean(),
        )
