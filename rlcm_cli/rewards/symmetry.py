"""Symmetry: how a picture correlates with its mirror image, or with itself upside down.

DDPO's published code (jannerm/ddpo, ddpo/training/callbacks.py) has both, as the squared difference or as the
correlation. The squared difference is smallest for a blank picture, so the reward here is a correlation, and one that
blank, tinted or nearly blank pictures do not raise: see `self_correlation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.pixels import in_parts, signed, total

if TYPE_CHECKING:
    from torch import Tensor

FAINT = 10.0
"""Root-mean-square contrast, in pixel values (0 to 255), below which a picture counts as faint.

The embedded model's drawings have 22 or more; the blank ones that a run on compressibility ends with have 3 or less. A
grey ramp of contrast 10 goes through 35 of the 256 levels, which anyone sees.
"""


def mirror_symmetry() -> RewardFn:
    """Make the reward for pictures whose left half mirrors the right: `self_correlation` with the mirror image.

    What does not change from left to right, such as horizontal bands, is its own mirror image too.
    """
    return lambda images, prompts, metadata: in_parts(lambda part: self_correlation(part, part.flip(3)), images)


def rotational_symmetry() -> RewardFn:
    """Make the reward for pictures that look the same upside down: `self_correlation` with the rotation by 180°.

    As in DDPO's rotational correlation, rotations by 90° have no part: they have a meaning for square pictures
    only, and a reward should not change its meaning with the size. Every picture with that symmetry has this one.
    """
    return lambda images, prompts, metadata: in_parts(lambda part: self_correlation(part, part.flip(2, 3)), images)


def self_correlation(images: Tensor, moved: Tensor) -> Tensor:
    """Return Pearson's correlation of each image with itself, its pixels in other places.

    With d the pixel values less the mean of their channel, and d' the same of the moved image, it is
    Σ d d' / Σ d² over pixels and channels (moving pixels changes neither means nor Σ d²). The mean is that of the
    channel: with one mean for all, a plain orange picture would correlate with itself, since its channels differ.
    A plain picture has no correlation and gets 0, what unrelated halves get; a 1 would make it an optimum that
    the training finds first. Below a contrast of `FAINT`, Σ d² is replaced by what that contrast has, so that the
    value sinks to 0 with the contrast rather than being decided by noise.

    Args:
        images: uint8 [B, 3, H, W], RGB, on any device; W up to 33,000. Or float64 on the CPU.
        moved: The same images with their pixels in other places.

    Returns:
        float32 [B], on the CPU, in [-1, 1]: 1 is a perfect symmetry, 0 none, −1 one with the negative. Sums run
        over integers: a value does not depend on the batch that the image came in.
    """
    count = images.shape[2] * images.shape[3]
    pixels = signed(images)
    red, green, blue = total(images, (2, 3)).cpu().double().unbind(1)
    squared_means = (red**2 + green**2 + blue**2) / count
    covariance = _total(pixels * moved) - squared_means
    variance = _total(pixels * pixels) - squared_means
    return (covariance / variance.clamp(min=3 * count * FAINT**2)).float()


def _total(products: Tensor) -> Tensor:
    """Sum products of two pixel values over each image, int32 or float64 [B, 3, H, W] to float64 [B] on the CPU."""
    import torch

    if products.is_floating_point():
        return products.sum((1, 2, 3))
    # A row of them fits into 32 bits, which is three times as fast as 64. Some devices have no float64.
    return products.sum(3, dtype=torch.int32).sum((1, 2), dtype=torch.int64).cpu().double()


ENTRIES = {
    "mirror_symmetry": RewardEntry(
        mirror_symmetry,
        description="the left half mirrors the right: correlation with the mirror image; 0 for a plain picture",
        value_range="-1 to 1",
        bounds=(-1.0, 1.0),
        differentiable=True,
    ),
    "rotational_symmetry": RewardEntry(
        rotational_symmetry,
        description="the same upside down: correlation with the rotation by 180°; 0 for a plain picture",
        value_range="-1 to 1",
        bounds=(-1.0, 1.0),
        differentiable=True,
    ),
}
