"""The multistep sampling of a latent consistency model (arXiv 2310.04378, algorithm 3), as RLCM's policy.

RLCM (arXiv 2404.03673), section 4: each action re-noises the consistency prediction. Of H model calls the first
H − 1 are actions; the last one is deterministic, and its image gets the reward.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlcm_cli.core.schedule import PredictionType, Schedule, predict_image, roots

Spacing = Literal["diffusers", "strided"]

SIGMA_DATA = 0.5


def lcm_timesteps(steps: int, *, original_steps: int, train_steps: int, spacing: Spacing) -> Tensor:
    """Choose H timesteps of the distillation's schedule k, 2k, … (each − 1), int64 [H], falling.

    `diffusers` takes evenly spaced indices as `LCMScheduler` and `TCDScheduler` do, `strided` every
    (original_steps // H)-th as the published RLCM code: for H = 4, [999, 759, 499, 259] against [999, 759, 519, 279].
    """
    origin = (torch.arange(1, original_steps + 1) * (train_steps // original_steps) - 1).flip(0)
    if spacing == "strided":
        return origin[:: original_steps // steps][:steps]
    # In float64, not in whole numbers: where a multiple is whole, diffusers' index may be rounded to the one below.
    return origin[(torch.arange(steps).double() * (original_steps / steps)).long()]


def lcm_schedule(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    prediction_type: PredictionType,
    *,
    timestep_scaling: float = 10.0,
    last_std: float = 0.0,
) -> Schedule:
    """Build the schedule of a consistency sampler, equal to diffusers' `LCMScheduler`.

    With the boundary conditions c_skip = σ² / (s² + σ²), c_out = s / √(s² + σ²), s = timestep_scaling · t, σ = 0.5:

        denoised = c_out · x₀ + c_skip · latents,   next latents ~ N(√ᾱ' · denoised, 1 − ᾱ')

    Args:
        alphas_cumprod: ᾱ of the model's training schedule, float [train steps].
        timesteps: Of the model calls, int64 [H], any falling sequence.
        prediction_type: What the model predicts.
        timestep_scaling: As in `LCMScheduler`.
        last_std: Standard deviation of the last call around its denoised latents; 0: deterministic. Above 0 it is
            an action as well, so that H calls have H actions (LaSRO, arXiv 2411.15247).
    """
    alpha, sigma = roots(alphas_cumprod[timesteps])
    scaled = timesteps.double() * timestep_scaling
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    image_of_latents, image_of_output = predict_image(prediction_type, alpha, sigma)
    # The last call is not re-noised: ᾱ' = 1.
    signal, std = torch.cat([alpha[1:], alpha.new_ones(1)]), torch.cat([sigma[1:], sigma.new_tensor([last_std])])
    return Schedule(
        timesteps,
        torch.cat([timesteps[1:], timesteps.new_tensor([-1])]),
        of_latents=signal * (c_out * image_of_latents + c_skip),
        of_output=signal * c_out * image_of_output,
        std=std,
    )
