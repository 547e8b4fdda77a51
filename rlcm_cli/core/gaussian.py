"""Gaussian policies: log-probabilities, drawn or given actions, and the divergence of two of them."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum"]

LOG_SQRT_2PI = 0.9189385332046727


def gaussian_log_prob(action: Tensor, mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Log-density of `action` under N(mean, std²), reduced over all but the first dimension.

    `action`, `mean`: [B, …]; `std`: broadcastable, > 0. Computed and returned in float32 (float64 stays).
    DDPO's code, and RLCM's after it, takes the mean over the latent dimensions: their clip range of 1e-4
    belongs to it.
    """
    action, mean, std = _widen(action, mean, std)
    log_density = -0.5 * ((action - mean) / std) ** 2 - std.log() - LOG_SQRT_2PI
    return _reduce(log_density, reduction)


def gaussian_kl(mean: Tensor, other_mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """KL(N(mean, std²) ‖ N(other_mean, std²)) = (mean − other_mean)² / (2 std²), float32 (float64 stays) [B].

    The arguments are those of `gaussian_log_prob`; both Gaussians share their standard deviation, which the
    noise schedule fixes.
    """
    mean, other_mean, std = _widen(mean, other_mean, std)
    return _reduce(0.5 * ((mean - other_mean) / std) ** 2, reduction)


def gaussian_log_ratio(action: Tensor, mean: Tensor, other_mean: Tensor, std: Tensor, reduction: Reduction) -> Tensor:
    """Log-ratio log N(action; mean, std²) − log N(action; other_mean, std²), float32 (float64 stays) [B].

    With d = mean − other_mean it is ((action − other_mean) d − d² / 2) / std². The difference of two log-densities,
    each of about 1, would keep only the digits of it above float32's 1e-7.
    """
    action, mean, other_mean, std = _widen(action, mean, other_mean, std)
    shift = mean - other_mean
    return _reduce(((action - other_mean) * shift - 0.5 * shift**2) / std**2, reduction)


def take_action(
    mean: Tensor,
    std: Tensor,
    *,
    reduction: Reduction,
    noise: Tensor | None = None,
    action: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw an action from N(mean, std²), or take the given one, and return it with its log-probability.

    Sampling passes `noise` (standard normal, [B, …]); training passes the stored `action`. The action has
    the mean's dtype, since that is what the model is fed next, and its log-probability is that of the
    rounded action: so both callers compute the same number.
    """
    if action is None and noise is not None:
        action = (mean + std * noise).to(mean.dtype)
    elif action is None or noise is not None:
        raise TypeError("take_action needs either noise, to draw, or action, to re-score")
    return action, gaussian_log_prob(action, mean, std, reduction)


def _widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor if tensor.dtype.itemsize == 8 else tensor.float() for tensor in tensors)


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    flat = values.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1)
