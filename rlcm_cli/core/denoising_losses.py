"""Losses over drawn images that are noised again: of what the denoiser makes of them, whatever sampler drew them.

Shape suffixes in prose: N noised images, each with its time.
"""

from __future__ import annotations

from torch import Tensor

from rlcm_cli.core.objectives import ObjectiveResult

SMALLEST_ERROR = 1e-5
"""What `nft_loss` divides by at least, as its published code does."""
SMALLEST_SQUARE = 1e-10
"""What `awm_log_probs` adds to an error before its root, as its published code does."""


def nft_loss(
    new: Tensor, old: Tensor, target: Tensor, levels: Tensor, goodness: Tensor, *, beta: float
) -> ObjectiveResult:
    """DiffusionNFT (arXiv 2509.16117), normalised as in its published code: how well noised images are denoised.

    With r the goodness of an image, t the noise level and y the target, the mean over N of

        (r · d(β new + (1 − β) old) + (1 − r) · d((1 + β) old − β new)) / β
        d(v) = mean (t (v − y))² / mean |t (v − y)|

    A good image draws the prediction near to itself, a bad one the mirror image of the prediction behind the old one.
    The divisors carry no gradient. Of flow matching, where predictions are velocities, t (v − y) is the error of the
    predicted image, as in the code; the noise or v of a diffusion model is weighed alike, without a factor that grows
    beyond bounds where hardly anything is left of the image.

    Args:
        new: Predictions of the policy, [N, C, h, w]; carries the gradient.
        old: Those of the policy that drew the images, likewise.
        target: What fits the image and its noise, likewise.
        levels: t of each, from 0, no noise, to 1, float [N].
        goodness: r of each image, from 0 to 1, float [N].
        beta: β > 0: what the loss sees of the policy's difference from the old one. The smaller, the further it goes.

    Returns:
        The loss, and the metric `distance`, the mean of (new − old)².
    """
    level = levels.view(-1, *[1] * (new.ndim - 1))

    def miss(prediction: Tensor) -> Tensor:
        error = level * (prediction - target)
        scale = error.detach().abs().flatten(1).mean(1).clamp(min=SMALLEST_ERROR)
        return error.square().flatten(1).mean(1) / scale

    positive = miss(beta * new + (1 - beta) * old)
    negative = miss((1 + beta) * old - beta * new)
    loss = ((goodness * positive + (1 - goodness) * negative) / beta).mean()
    return ObjectiveResult(loss, {"distance": (new.detach() - old).square().mean()})


def awm_log_probs(prediction: Tensor, target: Tensor, levels: Tensor, *, power: float, level_power: float) -> Tensor:
    """Return what advantage-weighted matching (arXiv 2509.25050) takes for log-probabilities of images, float [N].

    With e the mean squared error of a prediction, t the noise level, p and k the two powers:

        −t^k ((e + ε)^p − ε^p) / p

    So `power` 1 is the error itself, weighed by w(t) = t^k, and less makes large errors count less. The published
    code has (p, k) of (1, 0), (1, 1), (1, 2), (½, 1) without the division by p, and (¼, 1), which its results are of.

    Args:
        prediction: The denoiser's, [N, C, h, w]; may carry a gradient.
        target: What fits the image and its noise, likewise.
        levels: t of each, from 0, no noise, to 1, float [N].
        power: p > 0.
        level_power: k ≥ 0.
    """
    error = (prediction - target).square().flatten(1).mean(1)
    measure = (error + SMALLEST_SQUARE).pow(power) - SMALLEST_SQUARE**power
    found: Tensor = -(levels**level_power) * measure / power
    return found
