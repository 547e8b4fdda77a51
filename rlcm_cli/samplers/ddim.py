"""The sampling of a diffusion model by DDIM with noise (arXiv 2010.02502), as DDPO's policy (arXiv 2305.13301)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, PipelineCall, Sampler
from rlcm_cli.samplers._window import WindowSettings, spread_eta

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import PredictionType, Schedule

TimestepSpacing = Literal["leading", "trailing", "linspace"]


class DdimSettings(WindowSettings):
    """DDIM with noise: all H model calls add noise, or H − 1 where the model's scheduler says so."""

    kind: Literal["ddim"] = "ddim"
    timestep_spacing: Literal["model", "leading", "trailing", "linspace"] = "model"
    """Which timesteps to use, by arXiv 2305.08891, table 2; `model`: as the model's scheduler says. LoRAs that were
    distilled for a number of steps, as Hyper-SD's, want `trailing`."""
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much noise each step adds, 0 to 1; 1 as in DDPO; with 0 there is none, and nothing to train."""


def ddim_timesteps(steps: int, *, train_steps: int, spacing: TimestepSpacing, offset: int) -> Tensor:
    """Choose H timesteps as diffusers' `DDIMScheduler` does, int64 [H], falling.

    The spacings are those of arXiv 2305.08891, table 2; `offset` is added to the timesteps of `leading`.
    """
    import torch

    if spacing == "leading":
        return (torch.arange(steps) * (train_steps // steps)).flip(0) + offset
    # In the very arithmetic of numpy's arange and linspace: halves are rounded as its last bits say.
    if spacing == "trailing":
        stride = (train_steps - train_steps / steps) - train_steps
        return (train_steps + torch.arange(steps).double() * stride).round().long() - 1
    return (torch.arange(steps).double() * ((train_steps - 1) / max(steps - 1, 1))).round().long().flip(0)


def ddim_schedule(
    alphas_cumprod: Tensor,
    timesteps: Tensor,
    prediction_type: PredictionType,
    *,
    eta: Tensor,
    final_alpha_cumprod: float,
) -> Schedule:
    """Build the schedule of a DDIM sampler, equal to diffusers' `DDIMScheduler` without clipping.

    DDIM, equations 12 and 16, from t to t' = t − train steps // H:

        std = η √((1 − ᾱ') / (1 − ᾱ)) √(1 − ᾱ / ᾱ'),   mean = √ᾱ' · x₀ + √(1 − ᾱ' − std²) · ε

    Args:
        alphas_cumprod: ᾱ of the model's training schedule, float [train steps].
        timesteps: Of the model calls, int64 [H], falling.
        prediction_type: What the model predicts.
        eta: η of each call in 0 … 1, float [H]; a call with 0 is deterministic, and no action.
        final_alpha_cumprod: ᾱ' where t' is below 0; where it is 1, the last call is deterministic.
    """
    import torch

    from rlcm_cli.core.schedule import Schedule, predict_image, predict_noise, roots, rounded_sqrt

    next_timesteps = timesteps - len(alphas_cumprod) // len(timesteps)
    alpha_bar = alphas_cumprod[timesteps]
    next_alpha_bar = torch.where(
        next_timesteps >= 0,
        alphas_cumprod[next_timesteps.clamp(min=0)],
        alphas_cumprod.new_tensor(final_alpha_cumprod),
    )
    alpha, sigma = roots(alpha_bar)
    next_alpha, _ = roots(next_alpha_bar)
    variance = (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)
    std = eta.to(variance.dtype) * rounded_sqrt(variance).to(variance.dtype)
    # At η = 1 the radicand is exactly 0 where ᾱ is 0 (zero terminal SNR), and rounding may bring it below.
    direction = rounded_sqrt((1 - next_alpha_bar - std**2).clamp(min=0))
    image_of_latents, image_of_output = predict_image(prediction_type, alpha, sigma)
    noise_of_latents, noise_of_output = predict_noise(prediction_type, alpha, sigma)
    return Schedule(
        timesteps,
        next_timesteps,
        latents_coef=next_alpha * image_of_latents + direction * noise_of_latents,
        output_coef=next_alpha * image_of_output + direction * noise_of_output,
        std=std.double(),
    )


def _schedule(settings: DdimSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    scheduler, alphas_cumprod = noise.scheduler, noise.alphas_cumprod
    train_steps = len(alphas_cumprod)
    if steps > train_steps:
        raise ConfigError(f"sample.steps is {steps}, more than the {train_steps} timesteps of the model's training")
    offset = int(scheduler["steps_offset"])
    spacing = scheduler["timestep_spacing"] if settings.timestep_spacing == "model" else settings.timestep_spacing
    timesteps = ddim_timesteps(steps, train_steps=train_steps, spacing=spacing, offset=offset)
    if timesteps[0] >= train_steps:
        raise ConfigError(
            f"sample.steps is {steps}, and with the scheduler's steps_offset of {offset} the first timestep is "
            f"{timesteps[0]}, beyond the {train_steps} of the model's training; use fewer steps"
        )
    return ddim_schedule(
        alphas_cumprod,
        timesteps,
        scheduler["prediction_type"],
        eta=spread_eta(settings, steps),
        final_alpha_cumprod=1.0 if scheduler["set_alpha_to_one"] else float(alphas_cumprod[0]),
    )


def _in_diffusers(settings: DdimSettings, noise: Noise, steps: int) -> PipelineCall | None:
    if settings.has_window and settings.eta > 0:
        return None
    changed = {} if settings.timestep_spacing == "model" else {"timestep_spacing": settings.timestep_spacing}
    return PipelineCall(SAMPLER.scheduler, {"num_inference_steps": steps, "eta": settings.eta}, changed)


def _find_no_actions(settings: DdimSettings, steps: int) -> tuple[str, str] | None:
    if settings.eta == 0:
        return "sampler.eta is 0", "raise it"
    return ("sampler.window is empty", "name the calls that are to add noise") if settings.window == () else None


SAMPLER = Sampler(
    settings=DdimSettings,
    levels="alpha_bar",
    scheduler="DDIMScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=_find_no_actions,
    noise_on_last_call=False,
    # The noise of the last steps is so small that the rounding of folded products would show in the ratio.
    folds_lora=False,
    fits_pretraining=True,
    distilled=False,
    steps=50,
    drawing={"eta": 0.0},
    comfyui={"sampler_name": "ddim", "scheduler": "ddim_uniform"},
)
