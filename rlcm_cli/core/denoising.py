"""The loss that diffusion models are trained with on images: denoising at random noise levels (arXiv 2006.11239)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcm_cli.core.schedule import PredictionType


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return √ᾱ · latents + √(1 − ᾱ) · noise: latents and noise [B, C, H, W], ᾱ [B]."""
    alpha, sigma = _columns(alpha_bar)
    return alpha * latents + sigma * noise


def denoising_error(
    prediction: Tensor, latents: Tensor, noise: Tensor, alpha_bar: Tensor, prediction_type: PredictionType
) -> Tensor:
    """Return the mean squared error of predictions for noised latents, float32 [B].

    The target is the noise ε, the latents x, or v = √ᾱ · ε − √(1 − ᾱ) · x (arXiv 2202.00512, appendix D).

    Args:
        prediction: The model's, [B, C, H, W].
        latents: Of real images, [B, C, H, W].
        noise: Standard normal, [B, C, H, W].
        alpha_bar: ᾱ of each sample's timestep, float32 [B].
        prediction_type: What the model predicts.
    """
    alpha, sigma = _columns(alpha_bar)
    targets = {"epsilon": noise, "sample": latents, "v_prediction": alpha * noise - sigma * latents}
    error: Tensor = (prediction.float() - targets[prediction_type].float()) ** 2
    return error.flatten(1).mean(1)


def _columns(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    column = alpha_bar.view(-1, 1, 1, 1)
    return torch.sqrt(column), torch.sqrt(1 - column)
