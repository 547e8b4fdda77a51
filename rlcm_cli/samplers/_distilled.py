"""The timesteps of samplers that draw with distilled weights: some of those that the distillation had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, SamplerSettings
from rlcm_cli.sections import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

Spacing = Literal["diffusers", "strided"]


class DistilledSettings(SamplerSettings):
    """Settings of a sampler whose timesteps are some of the distillation's."""

    spacing: Spacing = "diffusers"
    """Which of the distillation's timesteps to use; `diffusers`: those of its schedulers; `strided`: every
    (original_steps // H)-th, as in RLCM's code."""
    original_steps: PositiveInt = 50
    """Length of the distillation's schedule, from which the H timesteps are chosen."""


def distilled_timesteps(steps: int, *, original_steps: int, train_steps: int, spacing: Spacing) -> Tensor:
    """Choose H timesteps of the distillation's schedule k, 2k, … (each − 1), int64 [H], falling.

    `diffusers` takes evenly spaced indices as `LCMScheduler` and `TCDScheduler` do, `strided` every
    (original_steps // H)-th as the published RLCM code: for H = 4, [999, 759, 499, 259] against [999, 759, 519, 279].
    """
    import torch

    origin = (torch.arange(1, original_steps + 1) * (train_steps // original_steps) - 1).flip(0)
    if spacing == "strided":
        return origin[:: original_steps // steps][:steps]
    # In float64, not in whole numbers: where a multiple is whole, diffusers' index may be rounded to the one below.
    return origin[(torch.arange(steps).double() * (original_steps / steps)).long()]


def choose_timesteps(settings: DistilledSettings, noise: Noise, steps: int) -> Tensor:
    """Choose the timesteps that the settings ask for, int64 [H]. Raises `ConfigError` for more than there are."""
    original_steps, train_steps = settings.original_steps, int(noise.scheduler["num_train_timesteps"])
    if steps > original_steps:
        raise ConfigError(
            f"sample.steps is {steps}, more than the schedule's {original_steps} (sampler.original_steps); use at "
            f"most {original_steps}"
        )
    if original_steps > train_steps:
        raise ConfigError(
            f"sampler.original_steps is {original_steps}, more than the {train_steps} timesteps of the model's "
            "training; latent consistency models are distilled with 50"
        )
    return distilled_timesteps(steps, original_steps=original_steps, train_steps=train_steps, spacing=settings.spacing)


def timestep_arguments(settings: DistilledSettings, noise: Noise, steps: int) -> dict[str, Any]:
    """Return how a pipeline of diffusers is told the timesteps: by their number, where it chooses the same itself."""
    own = noise.scheduler.get("original_inference_steps", settings.original_steps)
    if settings.spacing == "diffusers" and settings.original_steps == own:
        return {"num_inference_steps": steps}
    return {"timesteps": choose_timesteps(settings, noise, steps).tolist()}
