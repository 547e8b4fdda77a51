"""The schedule of a model's policy: its pipeline's noise levels in the formulas of its sampler."""

from __future__ import annotations

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
    for more steps than the model's training or distillation had.
    """
    config, alphas_cumprod = model.pipeline.scheduler.config, model.alphas_cumprod
    train_steps = int(config.num_train_timesteps)
    if model.policy == "ddim":
        if steps > train_steps:
            raise ConfigError(
                f"sample.steps is {steps}, more than the {train_steps} timesteps of the model's training"
            )
        return ddim_schedule(
            alphas_cumprod,
            ddim_timesteps(
                steps, train_steps=train_steps, spacing=config.timestep_spacing, offset=int(config.steps_offset)
            ),
            config.prediction_type,
            eta=eta,
            final_alpha_cumprod=float(model.pipeline.scheduler.final_alpha_cumprod),
        )
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
    timesteps = lcm_timesteps(steps, original_steps=original_steps, train_steps=train_steps, spacing=spacing)
    if model.policy == "tcd":
        return tcd_schedule(alphas_cumprod, timesteps, config.prediction_type, gamma=gamma)
    return lcm_schedule(
        alphas_cumprod,
        timesteps,
        config.prediction_type,
        timestep_scaling=float(config.timestep_scaling),
        last_std=last_std,
    )
