"""The multistep sampling of a latent consistency model as a Markov decision process.

RLCM (arXiv 2404.03673), section 4: state = (latents, timestep, prompt), action = the next latents, policy =
the Gaussian around the re-noised consistency prediction. Of H model calls the first H − 1 are actions; the
last one is deterministic, and its image gets the reward.

Shape suffixes: B samples, S states (S = H), A actions (A = H − 1), C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlcm_cli.core.gaussian import Reduction, take_action
from rlcm_cli.core.trajectory import Trajectories

Spacing = Literal["diffusers", "strided"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, H, W], timesteps int64 [B]) → model output [B, C, H, W]."""

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class NoiseSchedule:
    """The H timesteps of a consistency sampler, with what a transition needs at each.

    Equal to diffusers' `LCMScheduler` for the same settings; `timesteps` may be any falling sequence.
    """

    timesteps: Tensor
    """int64 [H], falling."""
    alphas_cumprod: Tensor
    """ᾱ at `timesteps`, float32 [H] (float64 is kept)."""
    prediction_type: PredictionType
    timestep_scaling: float = 10.0

    @property
    def steps(self) -> int:
        """H, the number of model calls."""
        return len(self.timesteps)

    def transition_pairs(self) -> Tensor:
        """(timestep, next timestep) of each action, int64 [A, 2]."""
        return torch.stack([self.timesteps[:-1], self.timesteps[1:]], dim=1)


def lcm_timesteps(steps: int, *, original_steps: int, train_steps: int, spacing: Spacing) -> Tensor:
    """Choose H timesteps of the distillation's schedule k, 2k, … (each − 1), int64 [H], falling.

    `diffusers` takes evenly spaced indices as `LCMScheduler` does, `strided` every (original_steps // H)-th
    as the published RLCM code: for H = 4, [999, 759, 499, 259] against [999, 759, 519, 279].
    """
    origin = (torch.arange(1, original_steps + 1) * (train_steps // original_steps) - 1).flip(0)
    if spacing == "strided":
        return origin[:: original_steps // steps][:steps]
    # In float64, not in whole numbers: where a multiple is whole, diffusers' index may be rounded to the one below.
    return origin[(torch.arange(steps).double() * (original_steps / steps)).long()]


def lcm_schedule(
    alphas_cumprod: Tensor, timesteps: Tensor, prediction_type: PredictionType, timestep_scaling: float = 10.0
) -> NoiseSchedule:
    """Build the schedule from the model's ᾱ [train_steps] and the chosen timesteps int64 [H]."""
    return NoiseSchedule(timesteps, alphas_cumprod[timesteps], prediction_type, timestep_scaling)


@dataclass(frozen=True)
class Transition:
    """The Gaussian of the next latents, and the consistency prediction that it is centred on."""

    mean: Tensor
    """√ᾱ' · denoised, [B, C, H, W]; after the last model call: `denoised`."""
    std: Tensor
    """√(1 − ᾱ'), [B, 1, 1, 1]; after the last model call: 0."""
    denoised: Tensor
    """c_out · x₀ + c_skip · x, [B, C, H, W]."""


def transition(schedule: NoiseSchedule, model_output: Tensor, latents: Tensor, step: Tensor) -> Transition:
    """Turn a model output at `step` (int64 [B], 0 … H − 1, any mixture) into the Gaussian of the next latents.

    Latent Consistency Models (arXiv 2310.04378), algorithm 3, with the boundary conditions of diffusers:
    c_skip = σ² / (s² + σ²), c_out = s / √(s² + σ²), s = timestep_scaling · t, σ = 0.5.
    """
    device, dtype = latents.device, torch.promote_types(latents.dtype, torch.float32)

    def column(values: Tensor) -> Tensor:
        return values.to(dtype).to(device)[step.to(device)].view(-1, 1, 1, 1)

    scaled = schedule.timesteps.double() * schedule.timestep_scaling
    c_skip = column(SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2))
    c_out = column(scaled / (scaled**2 + SIGMA_DATA**2).sqrt())
    # Roots in the schedule's own float32, as diffusers takes them, whatever the dtype of the latents.
    alpha_bar = schedule.alphas_cumprod
    alpha, sigma = column(alpha_bar.sqrt()), column((1 - alpha_bar).sqrt())
    # The last call is not re-noised: ᾱ' = 1 gives mean = denoised and std = 0.
    next_alpha_bar = torch.cat([alpha_bar[1:], alpha_bar.new_ones(1)])

    x, output = latents.to(dtype), model_output.to(dtype)
    if schedule.prediction_type == "epsilon":
        x0 = (x - sigma * output) / alpha
    elif schedule.prediction_type == "v_prediction":
        x0 = alpha * x - sigma * output
    else:
        x0 = output
    denoised = c_out * x0 + c_skip * x
    return Transition(column(next_alpha_bar.sqrt()) * denoised, column((1 - next_alpha_bar).sqrt()), denoised)


def sample_trajectories(
    predict: Predict, schedule: NoiseSchedule, noise_BSCHW: Tensor, reduction: Reduction, dtype: torch.dtype
) -> tuple[Trajectories, Tensor]:
    """Run the sampler and record it.

    `noise_BSCHW`: standard normal [B, H, C, H, W]; slice 0 is the initial state, slice s the noise of
    action s − 1. Latents are kept in `dtype`, as the model is fed. Gives the trajectories, and the final
    denoised latents [B, C, H, W] for the decoder.
    """
    count = len(noise_BSCHW)
    latents = noise_BSCHW[:, 0].to(dtype)
    states, log_probs = [latents], []
    for index in range(schedule.steps):
        step = torch.full((count,), index, dtype=torch.int64, device=latents.device)
        output = predict(latents, schedule.timesteps.to(latents.device)[step])
        gaussian = transition(schedule, output, latents, step)
        if index == schedule.steps - 1:
            break
        latents, log_prob = take_action(
            gaussian.mean.to(dtype), gaussian.std, noise=noise_BSCHW[:, index + 1], reduction=reduction
        )
        states.append(latents)
        log_probs.append(log_prob)
    recorded = torch.stack(log_probs, 1) if log_probs else latents.new_zeros((count, 0), dtype=torch.float32)
    return Trajectories(torch.stack(states, 1), recorded, schedule.transition_pairs()), gaussian.denoised.to(dtype)
