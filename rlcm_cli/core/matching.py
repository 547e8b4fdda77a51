"""The gradient of distribution matching (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867)."""

from __future__ import annotations

from torch import Tensor

SMALLEST_DISTANCE = 1e-6


def matching_gradient(images: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Return the direction in which images are likelier to be the policy's than the teacher's, [M, …].

    The gradient of KL(policy ‖ teacher) by the images is in proportion to the difference of the two scores, and so of
    the images that both denoise a noised one to. As in DMD's equation 8 each sample's is divided by how far the
    teacher's is from the sample itself, which makes all noise levels alike:

        (fake − real) / mean|images − real|

    Args:
        images: x₀ of the policy, [M, …].
        real: What the teacher makes of them after noise was added, [M, …].
        fake: What a denoiser of the policy's own images makes of the same, [M, …].
    """
    distance = (images - real).abs().flatten(1).mean(1).clamp_min(SMALLEST_DISTANCE)
    return (fake - real) / distance.view(-1, *[1] * (images.ndim - 1))
