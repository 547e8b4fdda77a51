"""Euler's steps for diffusion models, and the ancestral ones with noise (k-diffusion; arXiv 2206.00364, algorithm 1).

As SDXL-Turbo, SD-Turbo and SDXL-Lightning are drawn. diffusers keeps latents x = x₀ + σ ε and feeds the model
z = x / √(σ² + 1). Here the states are z itself, which is what the model is fed, and has a variance of about 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, PipelineCall, Sampler
from rlcm_cli.samplers._window import WindowSettings, find_no_noise, spread_eta

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import PredictionType, Schedule

ANCESTRAL, PLAIN = "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"


class EulerSettings(WindowSettings):
    """Euler's steps: H − 1 of H model calls add noise."""

    kind: Literal["euler"] = "euler"


def euler_timesteps(steps: int, *, train_steps: int, spacing: str, offset: int) -> Tensor:
    """Choose H timesteps as diffusers' Euler schedulers do, float64 [H], falling; whole but for `linspace`.

    The spacings are those of arXiv 2305.08891, table 2; `offset` is added to the timesteps of `leading`.
    """
    import torch

    if spacing == "trailing":
        stride = train_steps / steps
        return (train_steps - torch.arange(steps).double() * stride).round() - 1
    if spacing == "leading":
        return (torch.arange(steps) * (train_steps // steps)).flip(0).double() + offset
    # numpy's linspace of one point is its start.
    return (torch.arange(steps).double() * ((train_steps - 1) / max(steps - 1, 1))).flip(0)


def euler_schedule(sigmas: Tensor, timesteps: Tensor, prediction_type: PredictionType, eta: Tensor) -> Schedule:
    """Build the schedule of Euler's steps, equal to diffusers' schedulers.

    That is `EulerDiscreteScheduler` at η = 0, and at 1 `EulerAncestralDiscreteScheduler`. From σ to σ', with
    x = √(σ² + 1) z and x₀ the predicted image:

        σ_up = η √(σ'² (σ² − σ'²) / σ²),   σ_down = √(σ'² − σ_up²)
        next x ~ N(x + (σ_down − σ) (x − x₀) / σ, σ_up²)

    Args:
        sigmas: σ of the H calls, √((1 − ᾱ) / ᾱ), and of the end, float64 [H + 1], falling.
        timesteps: Of the model calls, float64 [H].
        prediction_type: What the model predicts: `epsilon` or `v_prediction`, or `sample` with η = 0.
        eta: η of each call, float64 [H].
    """
    import torch

    from rlcm_cli.core.schedule import Schedule

    now, then = sigmas[:-1], sigmas[1:]
    added = eta * (then**2 * (now**2 - then**2) / now**2).clamp(min=0).sqrt()
    reached = (then**2 - added**2).clamp(min=0).sqrt()
    scale, next_scale = (now**2 + 1).sqrt(), (then**2 + 1).sqrt()
    # The derivative (x − x₀) / σ of z and the model's output.
    if prediction_type == "epsilon":
        of_latents, of_output = torch.zeros_like(now), torch.ones_like(now)
    elif prediction_type == "v_prediction":
        of_latents, of_output = now / scale, 1 / scale
    else:
        of_latents, of_output = scale / now, -1 / now
    change = reached - now
    return Schedule(
        timesteps,
        torch.cat([timesteps[1:], timesteps.new_tensor([-1.0])]),
        latents_coef=(scale + change * of_latents) / next_scale,
        output_coef=change * of_output / next_scale,
        std=added / next_scale,
        initial_scale=1.0,
    )


def _schedule(settings: EulerSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    import dataclasses

    import torch

    levels, scheduler = noise.alphas_cumprod.double(), noise.scheduler
    if steps > len(levels):
        raise ConfigError(f"sample.steps is {steps}, more than the {len(levels)} timesteps of the model's training")
    spacing = str(scheduler["timestep_spacing"])
    timesteps = euler_timesteps(
        steps, train_steps=len(levels), spacing=spacing, offset=int(scheduler.get("steps_offset", 0))
    )
    if timesteps[0] > len(levels) - 1:
        raise ConfigError(
            f"sample.steps is {steps}, and with the scheduler's steps_offset the first timestep is {timesteps[0]:g}, "
            f"beyond the {len(levels)} of the model's training; use fewer steps"
        )
    every = ((1 - levels) / levels).sqrt()
    lower = timesteps.floor().long()
    upper, share = (lower + 1).clamp(max=len(levels) - 1), timesteps - lower
    sigmas = every[lower] * (1 - share) + every[upper] * share
    schedule = euler_schedule(
        torch.cat([sigmas, sigmas.new_zeros(1)]), timesteps, scheduler["prediction_type"], spread_eta(settings, steps)
    )
    # diffusers begins with x = σ_max ε where the spacing reaches the last timestep, else with √(σ_max² + 1) ε.
    first = float(sigmas[0])
    scale = 1.0 if spacing == "leading" else first / (first**2 + 1) ** 0.5
    return dataclasses.replace(schedule, initial_scale=scale)


def _in_diffusers(settings: EulerSettings, noise: Noise, steps: int) -> PipelineCall | None:
    if settings.eta == 0 or settings.window == ():
        return PipelineCall(PLAIN, {"num_inference_steps": steps})
    # The ancestral one does not know models that predict the image.
    if settings.eta < 1 or settings.has_window or noise.scheduler["prediction_type"] == "sample":
        return None
    return PipelineCall(ANCESTRAL, {"num_inference_steps": steps})


SAMPLER = Sampler(
    settings=EulerSettings,
    levels="alpha_bar",
    scheduler=ANCESTRAL,
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=find_no_noise,
    noise_on_last_call=False,
    # With a small η the noise is so small that the rounding of folded products would show in the ratio.
    folds_lora=False,
    fits_pretraining=True,
    # Base models are drawn so too; what is distilled is told by its recommendation.
    distilled=False,
    steps=30,
    comfyui={"sampler_name": "euler_ancestral", "scheduler": "sgm_uniform"},
)
