"""The loss that diffusion models are trained with on images: denoising at random noise levels (arXiv 2006.11239)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlcm_cli.core.schedule import PredictionType

OutputType = PredictionType | Literal["velocity"]
"""What a denoiser predicts; the velocity is that of flow matching, ε − x."""


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
    error: Tensor = (prediction.float() - choose_target(prediction_type, latents, noise, alpha, sigma).float()) ** 2
    return error.flatten(1).mean(1)


def choose_target(output: OutputType, latents: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return what a denoiser should predict of alpha · latents + sigma · noise; all tensors broadcast."""
    if output == "epsilon":
        return noise
    if output == "sample":
        return latents
    return noise - latents if output == "velocity" else alpha * noise - sigma * latents


def find_image(output: OutputType, latents: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the image x₀ that a prediction of `choose_target`'s kind stands for; all tensors broadcast.

    `latents` are alpha · x₀ + sigma · noise, where alpha is above 0 unless the output is a velocity or the image.
    """
    if output == "epsilon":
        return (latents - sigma * prediction) / alpha
    if output == "sample":
        return prediction
    if output == "velocity":
        return (latents - sigma * prediction) / (alpha + sigma)
    return (alpha * latents - sigma * prediction) / (alpha**2 + sigma**2)


def _columns(alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    column = alpha_bar.view(-1, 1, 1, 1)
    return torch.sqrt(column), torch.sqrt(1 - column)
