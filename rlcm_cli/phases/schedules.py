"""The schedules that a configuration asks for, and their record in a plan."""

from __future__ import annotations

import torch

from rlcm_cli.config import Config, SampleSettings
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.store.manifest import ScheduleRecord


def drawing_schedule(settings: SampleSettings, model: DiffusionModel) -> Schedule:
    """Build the schedule that images are drawn with, outside of training. Raises `ConfigError`."""
    return _build(settings, model, last_std=0.0)


def training_schedule(config: Config, model: DiffusionModel) -> Schedule:
    """Build the schedule that rollouts are drawn with.

    Raises `ConfigError` where no step of it draws an action, or the last one cannot be what the configuration says.
    """
    sample, last = config.sample, config.last_step
    if last.mode == "noise" and model.policy != "lcm":
        raise ConfigError(
            f"last_step.mode noise adds noise to the last call of an LCM, and this model's policy is {model.policy}; "
            "leave it out"
        )
    schedule = _build(sample, model, last_std=last.noise_std if last.mode == "noise" else 0.0)
    if last.mode == "backprop" and schedule.actions != schedule.steps - 1:
        raise ConfigError(
            "last_step.mode backprop is for samplers whose last call alone draws no noise, as an LCM's; here the "
            f"policy {model.policy} draws noise at {schedule.actions} of {schedule.steps} calls; leave it out"
        )
    if not schedule.actions and last.mode != "backprop":
        cause, advice = {
            "lcm": (f"sample.steps is {sample.steps}", "use --steps 2 or more"),
            "ddim": (f"sample.eta is {sample.eta:g}", "raise it"),
            "tcd": (f"sample.gamma is {sample.gamma:g} and sample.steps {sample.steps}", "raise it"),
        }[model.policy]
        raise ConfigError(
            f"{cause}: no step of the policy {model.policy} draws noise, so there is no action to train; {advice}"
        )
    return schedule


def _build(settings: SampleSettings, model: DiffusionModel, *, last_std: float) -> Schedule:
    return build_schedule(
        model,
        settings.steps,
        original_steps=settings.original_steps,
        spacing=settings.spacing,
        eta=settings.eta,
        gamma=settings.gamma,
        last_std=last_std,
    )


def record_schedule(schedule: Schedule, guidance_scale: float) -> ScheduleRecord:
    """Write a schedule down."""
    return ScheduleRecord(
        timesteps=tuple(schedule.timesteps.tolist()),
        next_timesteps=tuple(schedule.next_timesteps.tolist()),
        of_latents=tuple(schedule.of_latents.tolist()),
        of_output=tuple(schedule.of_output.tolist()),
        std=tuple(schedule.std.tolist()),
        guidance_scale=guidance_scale,
    )


def restore_schedule(record: ScheduleRecord) -> Schedule:
    """Make the schedule of a record again, the same to the bit."""
    return Schedule(
        torch.tensor(record.timesteps),
        torch.tensor(record.next_timesteps),
        torch.tensor(record.of_latents, dtype=torch.float64),
        torch.tensor(record.of_output, dtype=torch.float64),
        torch.tensor(record.std, dtype=torch.float64),
    )
