"""The strategic stochastic sampling of a trajectory consistency model (TCD, arXiv 2402.19159, section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlcm_cli.samplers import Noise, PipelineCall, Sampler
from rlcm_cli.samplers._distilled import DistilledSettings, choose_timesteps, timestep_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import PredictionType, Schedule


class TcdSettings(DistilledSettings):
    """The sampling of a trajectory consistency model: H − 1 of H model calls add noise."""

    kind: Literal["tcd"] = "tcd"
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Stochasticity, 0 to 1; with 0 there is no noise, and nothing to train."""


def tcd_schedule(
    alphas_cumprod: Tensor, timesteps: Tensor, prediction_type: PredictionType, *, gamma: float
) -> Schedule:
    """Build the schedule of a TCD sampler, equal to diffusers' `TCDScheduler`, which calls gamma eta.

    From t the model's trajectory is followed down to s = ⌊(1 − γ) t'⌋, below the next timestep t', and noise
    brings the latents up to it again; the last call ends at 0 and draws nothing:

        x_s = √ᾱ_s · x₀ + √(1 − ᾱ_s) · ε,   next latents ~ N(√(ᾱ' / ᾱ_s) · x_s, 1 − ᾱ' / ᾱ_s)

    Args:
        alphas_cumprod: ᾱ of the model's training schedule, float [train steps].
        timesteps: Of the model calls, int64 [H], falling.
        prediction_type: What the model predicts.
        gamma: γ in 0 … 1; at 0 the sampler is deterministic and has no actions.
    """
    import torch

    from rlcm_cli.core.schedule import Schedule, predict_image, predict_noise, roots

    next_timesteps = torch.cat([timesteps[1:], timesteps.new_zeros(1)])
    reached = ((1 - gamma) * next_timesteps).floor().long()
    alpha, sigma = roots(alphas_cumprod[timesteps])
    reached_alpha, reached_sigma = roots(alphas_cumprod[reached])
    kept = alphas_cumprod[next_timesteps] / alphas_cumprod[reached]
    kept[-1] = 1
    renoised, std = roots(kept)
    image_of_latents, image_of_output = predict_image(prediction_type, alpha, sigma)
    noise_of_latents, noise_of_output = predict_noise(prediction_type, alpha, sigma)
    return Schedule(
        timesteps,
        next_timesteps,
        latents_coef=renoised * (reached_alpha * image_of_latents + reached_sigma * noise_of_latents),
        output_coef=renoised * (reached_alpha * image_of_output + reached_sigma * noise_of_output),
        std=std,
    )


def _schedule(settings: TcdSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    timesteps = choose_timesteps(settings, noise, steps)
    return tcd_schedule(noise.alphas_cumprod, timesteps, noise.scheduler["prediction_type"], gamma=settings.gamma)


def _in_diffusers(settings: TcdSettings, noise: Noise, steps: int) -> PipelineCall:
    arguments = {**timestep_arguments(settings, noise, steps), "eta": settings.gamma}
    return PipelineCall(SAMPLER.scheduler, arguments)


def _find_no_actions(settings: TcdSettings, steps: int) -> tuple[str, str] | None:
    if steps > 1 and settings.gamma > 0:
        return None
    return f"sampler.gamma is {settings.gamma:g} and sample.steps {steps}", "raise it"


SAMPLER = Sampler(
    settings=TcdSettings,
    levels="alpha_bar",
    scheduler="TCDScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=_find_no_actions,
    noise_on_last_call=False,
    folds_lora=True,
    fits_pretraining=False,
    distilled=True,
    steps=4,
)
