"""The schedule of a model's policy: its pipeline's noise levels in the formulas of its sampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlcm_cli.core.ddim import ddim_schedule, ddim_timesteps
from rlcm_cli.core.lcm import Spacing, lcm_schedule, lcm_timesteps
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.core.tcd import tcd_schedule
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.diffusion import DiffusionModel


def build_schedule(
    model: DiffusionModel,
    steps: int,
    *,
    original_steps: int,
    spacing: Spacing,
    eta: float,
    gamma: float,
    last_std: float = 0.0,
) -> Schedule:
    """Build the schedule of H = `steps` model calls for the model's policy.

    `original_steps` and `spacing` concern lcm and tcd, `eta` ddim, `gamma` tcd, `last_std` lcm. Raises `ConfigError`
    for more steps than the model's training or distillation had, and for noise levels that no image can be drawn with.
    """
    config, alphas_cumprod = model.pipeline.scheduler.config, model.alphas_cumprod
    train_steps = int(config.num_train_timesteps)
    if model.policy == "ddim":
        schedule = _ddim_schedule(model, steps, eta)
    else:
        timesteps = _lcm_timesteps(steps, original_steps, train_steps, spacing)
        if model.policy == "tcd":
            schedule = tcd_schedule(alphas_cumprod, timesteps, config.prediction_type, gamma=gamma)
        else:
            schedule = lcm_schedule(
                alphas_cumprod,
                timesteps,
                config.prediction_type,
                timestep_scaling=float(config.timestep_scaling),
                last_std=last_std,
            )
    fault = schedule.find_fault()
    if fault is not None:
        raise ConfigError(_explain(fault, schedule, alphas_cumprod, config))
    return schedule


def _ddim_schedule(model: DiffusionModel, steps: int, eta: float) -> Schedule:
    scheduler, alphas_cumprod = model.pipeline.scheduler, model.alphas_cumprod
    config, train_steps = scheduler.config, len(alphas_cumprod)
    if steps > train_steps:
        raise ConfigError(f"sample.steps is {steps}, more than the {train_steps} timesteps of the model's training")
    offset = int(config.steps_offset)
    timesteps = ddim_timesteps(steps, train_steps=train_steps, spacing=config.timestep_spacing, offset=offset)
    if timesteps[0] >= train_steps:
        raise ConfigError(
            f"sample.steps is {steps}, and with the scheduler's steps_offset of {offset} the first timestep is "
            f"{timesteps[0]}, beyond the {train_steps} of the model's training; use fewer steps"
        )
    return ddim_schedule(
        alphas_cumprod,
        timesteps,
        config.prediction_type,
        eta=eta,
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
    )


def _explain(fault: str, schedule: Schedule, alphas_cumprod: Tensor, config: Any) -> str:
    """Say why a schedule is refused, and what to do."""
    if config.prediction_type == "epsilon" and (alphas_cumprod[schedule.timesteps] == 0).any():
        return (
            "the model's scheduler has no signal at its last timestep (rescale_betas_zero_snr), which a model that "
            "predicts the noise (prediction_type epsilon) divides by; set rescale_betas_zero_snr to false in "
            "scheduler/scheduler_config.json, or use a model that predicts v_prediction or sample"
        )
    return (
        f"no image can be drawn with this schedule: {fault}; check the betas in the model's "
        "scheduler/scheduler_config.json, and sample.steps, sample.eta and sample.gamma"
    )


def _lcm_timesteps(steps: int, original_steps: int, train_steps: int, spacing: Spacing) -> Tensor:
    if steps > original_steps:
        raise ConfigError(
            f"sample.steps is {steps}, more than the schedule's {original_steps} (sample.original_steps); use at most "
            f"{original_steps}"
        )
    if original_steps > train_steps:
        raise ConfigError(
            f"sample.original_steps is {original_steps}, more than the {train_steps} timesteps of the model's "
            "training; latent consistency models are distilled with 50"
        )
    return lcm_timesteps(steps, original_steps=original_steps, train_steps=train_steps, spacing=spacing)
