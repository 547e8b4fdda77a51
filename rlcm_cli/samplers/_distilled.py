"""The timesteps of samplers that draw with distilled weights: some of those that the distillation had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, SamplerSettings, Timesteps
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
    timesteps: Timesteps | None = None
    """Instead of both: the timesteps themselves, one for each model call, such as DMD2's [999, 749, 499, 249]."""


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
    """Choose the timesteps that the settings ask for, int64 [H]. Raises `ConfigError` for what there is not."""
    original_steps, train_steps = settings.original_steps, int(noise.scheduler["num_train_timesteps"])
    if settings.timesteps is not None:
        return _check_timesteps(settings.timesteps, steps, train_steps)
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


def _check_timesteps(asked: tuple[int, ...], steps: int, train_steps: int) -> Tensor:
    import torch

    if len(asked) != steps:
        raise ConfigError(
            f"sampler.timesteps names {len(asked)} timesteps, and sample.steps is {steps}: they are one for each "
            "model call; change one of them"
        )
    if list(asked) != sorted({*asked}, reverse=True) or asked[0] >= train_steps:
        raise ConfigError(
            f"sampler.timesteps are {list(asked)}: they fall, from at most {train_steps - 1}; change them"
        )
    return torch.tensor(asked)


def timestep_arguments(settings: DistilledSettings, noise: Noise, steps: int) -> dict[str, Any]:
    """Return how a pipeline of diffusers is told the timesteps: by their number, where it chooses the same itself."""
    own = noise.scheduler.get("original_inference_steps", settings.original_steps)
    if settings.timesteps is None and settings.spacing == "diffusers" and settings.original_steps == own:
        return {"num_inference_steps": steps}
    return {"timesteps": choose_timesteps(settings, noise, steps).tolist()}
