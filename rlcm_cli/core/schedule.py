"""The sampling of an image as a Markov decision process, whatever the sampler.

State = (latents, timestep, prompt), action = the next latents, policy = a Gaussian around what the sampler makes of
the model's output (DDPO, arXiv 2305.13301, section 4; RLCM, arXiv 2404.03673, section 4). Every sampler here draws

    next latents ~ N(a · latents + b · model output, std²)

with numbers a, b and std that belong to the step alone. A `Schedule` holds them; the modules of `samplers` compute
them. Calls with a std of 0 are deterministic and no actions: they can only be the last.

Shape suffixes: B samples, S states (S = A + 1), A actions, H model calls, C channels, H and W of the latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlcm_cli.core.gaussian import Reduction, take_action
from rlcm_cli.core.trajectory import Trajectories

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, C, H, W], timesteps [B]) → model output [B, C, H, W]."""


@dataclass(frozen=True)
class Schedule:
    """The H model calls of a sampler, each with what its transition needs."""

    timesteps: Tensor
    """int64 [H], falling; float64 of a sampler whose times are not whole."""
    next_timesteps: Tensor
    """Like `timesteps`; below 0: the image."""
    of_latents: Tensor
    """a of each call, float64 [H]."""
    of_output: Tensor
    """b of each call, float64 [H]."""
    std: Tensor
    """float64 [H]; 0 at the last call alone, at all of them, or nowhere."""

    @property
    def steps(self) -> int:
        """H, the number of model calls."""
        return len(self.timesteps)

    @property
    def actions(self) -> int:
        """A, the number of calls that draw: H, or H − 1 where the last one is deterministic."""
        return int((self.std > 0).sum())

    def find_fault(self) -> str | None:
        """Say why no image can be drawn with these numbers; None where one can."""
        finite = torch.stack([self.of_latents, self.of_output, self.std]).isfinite().all(0)
        if not finite.all():
            return f"the model call at timestep {self.timesteps[~finite][0]} has a factor that is NaN or infinite"
        draws = self.std > 0
        if draws.any() and not draws[:-1].all():
            timestep = self.timesteps[:-1][~draws[:-1]][0]
            return f"the model call at timestep {timestep} draws no noise, and others do"
        return None

    def to(self, device: torch.device) -> Schedule:
        """Give the schedule with its tensors on a device, so that no step has to wait for them to be copied there."""
        return Schedule(
            *(
                values.to(device)
                for values in (self.timesteps, self.next_timesteps, self.of_latents, self.of_output, self.std)
            )
        )

    def transition_pairs(self) -> Tensor:
        """(timestep, next timestep) of each action, [A, 2]."""
        return torch.stack([self.timesteps, self.next_timesteps], dim=1)[: self.actions]


@dataclass(frozen=True)
class Transition:
    """The Gaussian of the next latents."""

    mean: Tensor
    """[B, C, H, W], float32 (float64 stays)."""
    std: Tensor
    """[B, 1, 1, 1]; 0 after a deterministic call."""


def transition(schedule: Schedule, model_output: Tensor, latents: Tensor, step: Tensor) -> Transition:
    """Turn a model output at `step` (int64 [B], 0 … H − 1, any mixture) into the Gaussian of the next latents."""
    dtype = torch.promote_types(latents.dtype, torch.float32)

    def column(values: Tensor) -> Tensor:
        return values.to(dtype).to(latents.device)[step.to(latents.device)].view(-1, 1, 1, 1)

    mean = column(schedule.of_latents) * latents.to(dtype) + column(schedule.of_output) * model_output.to(dtype)
    return Transition(mean, column(schedule.std))


def sample_trajectories(
    predict: Predict, schedule: Schedule, noise_BSCHW: Tensor, reduction: Reduction, dtype: torch.dtype
) -> tuple[Trajectories, Tensor]:
    """Run the sampler and record it.

    `noise_BSCHW`: standard normal [B, A + 1, C, H, W]; slice 0 is the initial state, slice s the noise of
    action s − 1. Latents are kept in `dtype`, as the model is fed. Gives the trajectories, and the final
    latents [B, C, H, W] for the decoder: the last action, or the mean of a deterministic last call.
    """
    count = len(noise_BSCHW)
    latents = noise_BSCHW[:, 0].to(dtype)
    states, log_probs = [latents], []
    on_device = schedule.to(latents.device)
    for index in range(schedule.steps):
        step = torch.full((count,), index, dtype=torch.int64, device=latents.device)
        output = predict(latents, on_device.timesteps[step])
        gaussian = transition(on_device, output, latents, step)
        latents = gaussian.mean.to(dtype)
        if schedule.std[index] == 0:
            continue
        latents, log_prob = take_action(latents, gaussian.std, noise=noise_BSCHW[:, index + 1], reduction=reduction)
        states.append(latents)
        log_probs.append(log_prob)
    recorded = torch.stack(log_probs, 1) if log_probs else latents.new_zeros((count, 0), dtype=torch.float32)
    return Trajectories(torch.stack(states, 1), recorded, schedule.transition_pairs()), latents


def predict_image(prediction_type: PredictionType, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Give the factors of latents and model output in the predicted image x₀, with √ᾱ and √(1 − ᾱ) [H]."""
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def predict_noise(prediction_type: PredictionType, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Give the factors of latents and model output in the predicted noise ε, with √ᾱ and √(1 − ᾱ) [H]."""
    if prediction_type == "epsilon":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction_type == "v_prediction":
        return sigma, alpha
    return 1 / sigma, -alpha / sigma


def roots(alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Return √ᾱ and √(1 − ᾱ), float64, rounded as the schedulers of diffusers have them: to the dtype of ᾱ."""
    return rounded_sqrt(alphas_cumprod), rounded_sqrt(1 - alphas_cumprod)


def rounded_sqrt(values: Tensor) -> Tensor:
    """Return √values in float64, rounded to the dtype of `values`: the same bits on every processor.

    A float32 root may be off by its last bit where a vector library takes it. The root in float64, rounded, cannot.
    """
    return values.double().sqrt().to(values.dtype).double()
