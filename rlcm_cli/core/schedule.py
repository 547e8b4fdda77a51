"""The sampling of an image as a Markov decision process, whatever the sampler.

State = (latents, timestep, prompt), action = the next latents, policy = a Gaussian around what the sampler makes of
the model's output (DDPO, arXiv 2305.13301, section 4; RLCM, arXiv 2404.03673, section 4). Every sampler here draws

    next latents ~ N(a · latents + b · model output, std²)

with numbers a, b and std that belong only to the step. A `Schedule` holds them; the modules of `samplers` compute
them. The calls with a std above 0 are the actions, wherever they stand; the others are deterministic.

Shape suffixes: B samples, S recorded states, A actions, H model calls, C channels, H and W of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlcm_cli.core.gaussian import Reduction, take_action
from rlcm_cli.core.trajectory import Trajectories

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents [B, …], timesteps [B]) → model output [B, …]."""


@dataclass(frozen=True)
class Schedule:
    """The H model calls of a sampler, each with what its transition needs."""

    timesteps: Tensor
    """int64 [H], falling; float64 of a sampler whose times are not whole."""
    next_timesteps: Tensor
    """Like `timesteps`; below 0: the image."""
    latents_coef: Tensor
    """a of each call, float64 [H]."""
    output_coef: Tensor
    """b of each call, float64 [H]."""
    std: Tensor
    """float64 [H]; 0 where the call is deterministic."""
    initial_scale: float = 1.0
    """What the standard normal noise is multiplied by to be the initial state."""

    @property
    def steps(self) -> int:
        """H, the number of model calls."""
        return len(self.timesteps)

    @property
    def actions(self) -> int:
        """A, the number of calls that draw: of most samplers H, or H − 1 where the last one is deterministic."""
        return len(self.action_calls)

    @property
    def action_calls(self) -> Tensor:
        """Which calls draw: int64 [A], rising."""
        return (self.std > 0).nonzero().flatten()

    @property
    def recorded_calls(self) -> list[int]:
        """The calls whose latents are recorded as they are fed, H being the image: see `core.trajectory`."""
        actions = self.action_calls.tolist()
        return sorted({*actions, *(call + 1 for call in actions), self.steps - 1})

    def weigh_calls(self, power: int) -> Tensor:
        """Return a weight of each call in proportion to std^power, 1 in the mean over the actions, float64 [H]."""
        weights = self.std**power
        return weights / weights[self.action_calls].mean()

    def find_fault(self) -> str | None:
        """Return why no image can be drawn with these numbers; None where one can."""
        finite = torch.stack([self.latents_coef, self.output_coef, self.std]).isfinite().all(0)
        if not finite.all():
            return f"the model call at timestep {self.timesteps[~finite][0]} has a factor that is NaN or infinite"
        if not 0 < self.initial_scale < math.inf:
            return f"the initial noise is multiplied by {self.initial_scale}"
        return None

    def to(self, device: torch.device) -> Schedule:
        """Return the schedule with its tensors on a device, so that no step waits for them to be copied there."""
        return Schedule(
            self.timesteps.to(device),
            self.next_timesteps.to(device),
            self.latents_coef.to(device),
            self.output_coef.to(device),
            self.std.to(device),
            self.initial_scale,
        )

    def transition_pairs(self) -> Tensor:
        """(timestep, next timestep) of each action, [A, 2]."""
        return torch.stack([self.timesteps, self.next_timesteps], dim=1)[self.action_calls]


@dataclass(frozen=True)
class Transition:
    """The Gaussian of the next latents."""

    mean: Tensor
    """[B, …] as the latents, float32 (float64 stays)."""
    std: Tensor
    """[B, 1, …]; 0 after a deterministic call."""


def transition(schedule: Schedule, model_output: Tensor, latents: Tensor, step: Tensor) -> Transition:
    """Turn a model output at `step` (int64 [B], 0 … H − 1, any mixture) into the Gaussian of the next latents."""
    dtype = torch.promote_types(latents.dtype, torch.float32)

    def column(values: Tensor) -> Tensor:
        return values.to(dtype).to(latents.device)[step.to(latents.device)].view(-1, *[1] * (latents.ndim - 1))

    mean = column(schedule.latents_coef) * latents.to(dtype) + column(schedule.output_coef) * model_output.to(dtype)
    return Transition(mean, column(schedule.std))


def sample_trajectories(
    predict: Predict, schedule: Schedule, noise_BSCHW: Tensor, reduction: Reduction, dtype: torch.dtype
) -> tuple[Trajectories, Tensor]:
    """Run the sampler and record it.

    `noise_BSCHW`: standard normal [B, A + 1, C, H, W]; slice 0, scaled, is the initial state, slice s the noise of
    action s − 1. Latents are kept in `dtype`, as the model is fed. Returns the trajectories, and the final
    latents [B, C, H, W] for the decoder: the last action, or the mean of a deterministic last call.
    """
    count = len(noise_BSCHW)
    latents = (noise_BSCHW[:, 0] * schedule.initial_scale).to(dtype)
    recorded_calls = schedule.recorded_calls
    states: list[Tensor] = []
    log_probs: list[Tensor] = []
    on_device = schedule.to(latents.device)
    for call in range(schedule.steps):
        if call in recorded_calls:
            states.append(latents)
        step = torch.full((count,), call, dtype=torch.int64, device=latents.device)
        output = predict(latents, on_device.timesteps[step])
        gaussian = transition(on_device, output, latents, step)
        latents = gaussian.mean.to(dtype)
        if schedule.std[call] == 0:
            continue
        noise = noise_BSCHW[:, len(log_probs) + 1]
        latents, log_prob = take_action(latents, gaussian.std, noise=noise, reduction=reduction)
        log_probs.append(log_prob)
    if schedule.steps in recorded_calls:
        states.append(latents)
    recorded = torch.stack(log_probs, 1) if log_probs else latents.new_zeros((count, 0), dtype=torch.float32)
    trajectories = Trajectories(
        torch.stack(states, 1), recorded, schedule.transition_pairs(), schedule.action_calls.cpu()
    )
    return trajectories, latents


def predict_image(prediction_type: PredictionType, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of latents and model output in the predicted image x₀, with √ᾱ and √(1 − ᾱ) [H]."""
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "v_prediction":
        return alpha, -sigma
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def predict_noise(prediction_type: PredictionType, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of latents and model output in the predicted noise ε, with √ᾱ and √(1 − ᾱ) [H]."""
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
