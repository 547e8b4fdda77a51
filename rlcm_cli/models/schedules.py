"""The schedule of a model's sampler: its pipeline's noise levels in the formulas of the sampler."""

from __future__ import annotations

from rlcm_cli.core.schedule import Schedule
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.samplers import Noise, SamplerSettings


def build_schedule(model: LatentModel, settings: SamplerSettings, steps: int, *, last_std: float = 0.0) -> Schedule:
    """Build the schedule of H = `steps` model calls for the model's sampler, whose settings these are.

    `last_std`: standard deviation of the last call, of samplers with `noise_on_last_call`. Raises `ConfigError` for
    more steps than the model's training or distillation had, and for noise levels that no image can be drawn with.
    """
    if settings.kind != model.sampler.kind:
        raise ValueError(f"settings of the sampler {settings.kind} for a model that {model.sampler.kind} draws with")
    noise = model.noise
    schedule = model.sampler.schedule(settings, noise, steps, last_std)
    fault = schedule.find_fault()
    if fault is not None:
        raise ConfigError(_explain(fault, schedule, noise))
    return schedule


def _explain(fault: str, schedule: Schedule, noise: Noise) -> str:
    """Return why a schedule is refused, and what to do."""
    predicts_noise = noise.alpha_bar is not None and noise.scheduler["prediction_type"] == "epsilon"
    if predicts_noise and (noise.alphas_cumprod[schedule.timesteps] == 0).any():
        return (
            "the model's scheduler has no signal at its last timestep (rescale_betas_zero_snr), which a model that "
            "predicts the noise (prediction_type epsilon) divides by; set rescale_betas_zero_snr to false in "
            "scheduler/scheduler_config.json, or use a model that predicts v_prediction or sample"
        )
    return (
        f"no image can be drawn with this schedule: {fault}; check the noise levels in the "
        "model's scheduler/scheduler_config.json, sample.steps and [sampler]"
    )
