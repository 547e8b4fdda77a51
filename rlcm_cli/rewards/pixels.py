"""Light, colour and sharpness of the pixels: the standard formulas, no weights.

Every sum runs over integers, which have no rounding: a value does not depend on the batch that the image came
in, on the device or on the number of threads. Float images, which are for the gradient, are measured in float64, which
holds whole values exactly too. All three are defined for every image of one pixel or more. None
of them knows what the picture shows, so training for only one of them gives white, gaudy or noisy pictures; also
watch a reward that looks at the subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn

if TYPE_CHECKING:
    from torch import Tensor

REC_709 = (2126, 7152, 722)
"""Shares of R', G' and B' in luma, in ten-thousandths (ITU-R BT.709, item 3.2)."""

_PART = 2**18


def brightness() -> RewardFn:
    """Make the reward for light pictures: `mean_luma`."""
    return lambda images, prompts, metadata: in_parts(mean_luma, images)


def colourfulness() -> RewardFn:
    """Make the reward for colourful pictures: `opponent_colourfulness`."""
    return lambda images, prompts, metadata: in_parts(opponent_colourfulness, images)


def sharpness() -> RewardFn:
    """Make the reward for sharp pictures: `laplacian_variance`."""
    return lambda images, prompts, metadata: in_parts(laplacian_variance, images)


def in_parts(measure: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Measure a batch a quarter of a million pixels at a time: it then stays in the processor's caches.

    Args:
        measure: From uint8 [b, 3, H, W], or float64 on the CPU, to float32 [b], one value per image, whatever the
            other images are.
        images: uint8 [B, 3, H, W], or floats of 0 … 255, whose gradient is kept.

    Returns:
        float32 [B].
    """
    import torch

    if images.is_floating_point():
        images = images.cpu().double()  # some devices have no float64
    size = max(1, _PART // (images.shape[2] * images.shape[3]))
    return torch.cat([measure(part) for part in torch.split(images, size)])


def signed(images: Tensor) -> Tensor:
    """Return pixels as numbers that can be subtracted: int32 of uint8; floats as they are."""
    return images if images.is_floating_point() else images.int()


def total(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum whole values without rounding: in int64, or as the floats that they are."""
    import torch

    return values.sum(dims, dtype=None if values.is_floating_point() else torch.int64)


def mean_luma(images: Tensor) -> Tensor:
    """Return the mean luma of each image: 0.2126 R' + 0.7152 G' + 0.0722 B' of the pixel values as they are.

    Args:
        images: uint8 [B, 3, H, W], RGB, on any device, or float64 on the CPU.

    Returns:
        float32 [B], on the CPU, in [0, 1]: 0 is black, 1 is white.
    """
    count = images.shape[2] * images.shape[3]
    luma = _weigh(total(images, (2, 3))).cpu().double()
    return (luma / (255 * 10_000 * count)).float()


def opponent_colourfulness(images: Tensor) -> Tensor:
    """Return the colourfulness of each image after Hasler and Süsstrunk.

    M = √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²) with rg = R − G and yb = (R + G)/2 − B, means and population
    standard deviations over the pixels: M̂⁽³⁾ of "Measuring colourfulness in natural images" (Human Vision and
    Electronic Imaging VIII, 2003). Their viewers called 0 not colourful, 45 averagely and 109 extremely colourful.

    Args:
        images: uint8 [B, 3, H, W], RGB, on any device, or float64 on the CPU.

    Returns:
        float32 [B], on the CPU, 0 or more, in units of pixel values (0 to 255).
    """
    red, green, blue = signed(images).unbind(1)
    rg_mean, rg_variance = _mean_and_variance(red - green)
    yb_mean, yb_variance = _mean_and_variance(red + green - 2 * blue)  # 2 yb, to stay with integers
    spread = _root(rg_variance + yb_variance / 4)
    offset = _root(rg_mean**2 + yb_mean**2 / 4)
    return (spread + 0.3 * offset).float()


def laplacian_variance(images: Tensor) -> Tensor:
    """Return the variance of the Laplacian of each image's luma, the focus measure LAPV.

    J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000. The
    Laplacian is the kernel (0 1 0, 1 −4 1, 0 1 0) on Rec. 709 luma rounded to 8 bits. A pixel at the edge sees its own
    value outside (OpenCV's BORDER_REPLICATE), so that a picture of one pixel has a Laplacian too, 0.

    Args:
        images: uint8 [B, 3, H, W], RGB, on any device, or float64 on the CPU.

    Returns:
        float32 [B], on the CPU, in [0, 1020²], in squared units of pixel values (0 to 255): 0 is a plain picture, a
        chequerboard of single black and white pixels is nearly the maximum.
    """
    import torch

    luma = _round_luma(_weigh(signed(images)))
    down, right = luma.diff(dim=1), luma.diff(dim=2)
    laplacian = torch.zeros_like(luma)
    laplacian[:, :-1] += down
    laplacian[:, 1:] -= down
    laplacian[:, :, :-1] += right
    laplacian[:, :, 1:] -= right
    return _mean_and_variance(laplacian)[1].float()


def _weigh(channels: Tensor) -> Tensor:
    """Weigh channels by `REC_709`: integers [B, 3, ...] to [B, ...], 10,000 times the luma."""
    red, green, blue = channels.unbind(1)
    return REC_709[0] * red + REC_709[1] * green + REC_709[2] * blue


def _mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and population variance of each image, float64 [B] on the CPU, from `signed` values [B, H, W]."""
    count = values.shape[1] * values.shape[2]
    # Totals leave the device as integers: some devices have no float64.
    of_values = total(values, (1, 2)).cpu().double()
    of_squares = total(values * values, (1, 2)).cpu().double()
    mean = of_values / count
    return mean, (of_squares - of_values * mean).clamp(min=0) / count


def _round_luma(weighed: Tensor) -> Tensor:
    """Round 10,000 times the luma to whole luma, halves up; of floats with the gradient of no rounding."""
    rounded = (weighed + 5000).div(10_000, rounding_mode="floor")
    if not weighed.is_floating_point():
        return rounded
    luma = weighed / 10_000
    return luma + (rounded - luma).detach()


def _root(values: Tensor) -> Tensor:
    """Take square roots with a gradient of 0 at 0, where it has none."""
    positive = values > 0
    return values.where(positive, 1).sqrt() * positive


ENTRIES = {
    "brightness": RewardEntry(
        brightness,
        description="light: the mean Rec. 709 luma",
        value_range="0 (black) to 1 (white)",
        bounds=(0.0, 1.0),
        differentiable=True,
    ),
    "colourfulness": RewardEntry(
        colourfulness,
        description="colourful: spread and mean of the opponent colours (Hasler and Süsstrunk 2003)",
        value_range="0 (grey) or more; 45 averagely, 109 extremely colourful",
        bounds=(0.0, math.inf),
        differentiable=True,
    ),
    "sharpness": RewardEntry(
        sharpness,
        description="sharp: the variance of the Laplacian of the luma (Pech-Pacheco et al. 2000)",
        value_range="0 (plain) to 1040400, squared pixel values",
        bounds=(0.0, 1040400.0),
        differentiable=True,
    ),
}
