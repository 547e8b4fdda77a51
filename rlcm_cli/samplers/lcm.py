"""The multistep sampling of a latent consistency model (arXiv 2310.04378, algorithm 3), as RLCM's policy.

RLCM (arXiv 2404.03673), section 4: each action re-noises the consistency prediction. Of H model calls the first
H − 1 are actions; the last one is deterministic, and its image gets the reward.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from rlcm_cli.samplers import Noise, PipelineCall, Sampler
from rlcm_cli.samplers._distilled import DistilledSettings, choose_timesteps, timestep_arguments
from rlcm_cli.samplers._window import WindowSettings, find_no_noise, spread_eta

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import PredictionType, Schedule

SIGMA_DATA = 0.5


class LcmSettings(DistilledSettings, WindowSettings):
    """The multistep sampling of a latent consistency model: H − 1 of H model calls add noise."""

    kind: Literal["lcm"] = "lcm"


def lcm_schedule(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    prediction_type: PredictionType,
    *,
    eta: Tensor | None = None,
    timestep_scaling: float = 10.0,
    last_std: float = 0.0,
) -> Schedule:
    """Build the schedule of a consistency sampler, at η = 1 equal to diffusers' `LCMScheduler`.

    With the boundary conditions c_skip = σ² / (s² + σ²), c_out = s / √(s² + σ²), s = timestep_scaling · t, σ = 0.5:

        denoised = c_out · x₀ + c_skip · latents,   next latents ~ N(√ᾱ' · denoised, 1 − ᾱ')

    Below η = 1 some of the noise is the one that the prediction took out of the latents, ε = (latents − √ᾱ · denoised)
    / √(1 − ᾱ), as in coefficient-preserving sampling (arXiv 2509.05952):

        next latents ~ N(√ᾱ' · denoised + √(1 − ᾱ') cos(ηπ/2) · ε, (1 − ᾱ') sin²(ηπ/2))

    Args:
        alphas_cumprod: ᾱ of the model's training schedule, float [train steps].
        timesteps: Of the model calls, int64 [H], any falling sequence.
        prediction_type: What the model predicts.
        eta: η of each call, float64 [H]; None for 1.
        timestep_scaling: As in `LCMScheduler`.
        last_std: Standard deviation of the last call around its denoised latents; 0: deterministic. Above 0 it is
            an action as well, so that H calls have H actions (LaSRO, arXiv 2411.15247).
    """
    import torch

    from rlcm_cli.core.schedule import Schedule, predict_image, roots

    alpha, sigma = roots(alphas_cumprod[timesteps])
    scaled = timesteps.double() * timestep_scaling
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    image_of_latents, image_of_output = predict_image(prediction_type, alpha, sigma)
    # The last call is not re-noised: ᾱ' = 1.
    signal, level = torch.cat([alpha[1:], alpha.new_ones(1)]), torch.cat([sigma[1:], sigma.new_zeros(1)])
    latents_coef = signal * (c_out * image_of_latents + c_skip)
    output_coef = signal * c_out * image_of_output
    std = level
    if eta is not None:
        # At η = 1, where the cosine is not quite 0, the numbers stay what they are.
        kept = torch.where(eta < 1, level * torch.cos(eta * math.pi / 2), 0.0) / sigma
        latents_coef = latents_coef + kept * (1 - alpha * (c_out * image_of_latents + c_skip))
        output_coef = output_coef - kept * alpha * c_out * image_of_output
        std = torch.where(eta < 1, level * torch.sin(eta * math.pi / 2), level)
    std = torch.cat([std[:-1], std.new_tensor([last_std])])
    return Schedule(timesteps, torch.cat([timesteps[1:], timesteps.new_tensor([-1])]), latents_coef, output_coef, std)


def _schedule(settings: LcmSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    return lcm_schedule(
        noise.alphas_cumprod,
        choose_timesteps(settings, noise, steps),
        noise.scheduler["prediction_type"],
        eta=spread_eta(settings, steps),
        timestep_scaling=float(noise.scheduler["timestep_scaling"]),
        last_std=last_std,
    )


def _in_diffusers(settings: LcmSettings, noise: Noise, steps: int) -> PipelineCall | None:
    if settings.eta < 1 or settings.has_window:
        return None
    return PipelineCall(SAMPLER.scheduler, timestep_arguments(settings, noise, steps))


SAMPLER = Sampler(
    settings=LcmSettings,
    levels="alpha_bar",
    scheduler="LCMScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=find_no_noise,
    noise_on_last_call=True,
    folds_lora=True,
    fits_pretraining=False,
    distilled=True,
    steps=4,
    comfyui={"ModelSamplingDiscrete": "lcm", "sampler_name": "lcm", "scheduler": "sgm_uniform"},
)
