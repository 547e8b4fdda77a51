"""The schedules that a configuration asks for, and their record in a plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlcm_cli.config import Config
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.errors import ConfigError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.schedules import build_schedule
from rlcm_cli.objectives import Need, find_objective
from rlcm_cli.samplers import SamplerSettings, explain_no_actions, settle_window
from rlcm_cli.store.manifest import ScheduleRecord


def drawing_schedule(settings: SamplerSettings, steps: int, model: LatentModel) -> Schedule:
    """Build the schedule that images are drawn with, outside of training. Raises `ConfigError`.

    Where the noisy calls differ between iterations, as many draw noise as in training: a fixed choice, so that images
    of several checkpoints differ by the weights only.
    """
    schedule = build_schedule(model, settings, steps)
    settled = settle_window(settings, schedule.action_calls.tolist(), seed=0, iteration=0)
    return schedule if settled == settings else build_schedule(model, settled, steps)


def training_schedule(config: Config, model: LatentModel, iteration: int = 0) -> Schedule:
    """Build the schedule that the rollouts of an iteration are drawn with; only windows differ between them.

    Raises `ConfigError` where no step of it draws an action and the objective needs some, or the last one cannot be
    what the configuration says.
    """
    sample, last = config.sample, config.last_step
    if last.mode == "noise" and not model.sampler.noise_on_last_call:
        raise ConfigError(
            f"last_step.mode noise adds noise to the last call, which the sampler {model.sampler.kind} does not take; "
            "leave it out"
        )
    last_std = last.noise_std if last.mode == "noise" else 0.0
    schedule = build_schedule(model, config.sampler, sample.steps, last_std=last_std)
    seed = derive_seed(config.seed, "window", iteration)
    settled = settle_window(config.sampler, schedule.action_calls.tolist(), seed, iteration)
    if settled != config.sampler:
        schedule = build_schedule(model, settled, sample.steps, last_std=last_std)
    if last.mode == "backprop":
        _check_backprop(schedule, last.calls, model.sampler.kind)
    if not schedule.actions and last.mode != "backprop" and Need.ACTIONS in find_objective(config).needs:
        raise ConfigError(
            explain_no_actions(config.sampler, sample.steps)
            or f"sample.steps is {sample.steps}: no step of the sampler {model.sampler.kind} draws noise with this "
            "model's scheduler, so there is no action to train; use more steps"
        )
    _check_actions(config, schedule)
    return schedule


def _check_actions(config: Config, schedule: Schedule) -> None:
    """Raise `ConfigError` where `train.actions` names an action that the policy gradient does not have."""
    there = schedule.actions - config.last_step.own_actions
    beyond = [action for action in config.train.actions or () if action >= there]
    if beyond:
        have = f"0 to {there - 1}" if there > 1 else "just 0" if there else "none"
        raise ConfigError(
            f"train.actions names the action {beyond[0]}, and the policy gradient has {have} of the "
            f"{schedule.steps} calls of a trajectory (sample.steps); change one of them"
        )


def _check_backprop(schedule: Schedule, calls: int, sampler: str) -> None:
    """Raise `ConfigError` where a gradient cannot go back through the last `calls` calls of a schedule."""
    if schedule.std[-1] > 0:
        raise ConfigError(
            "last_step.mode backprop is for samplers that draw no noise at the last call, as an LCM's; here the "
            f"sampler {sampler} draws noise at {schedule.actions} of {schedule.steps} calls; leave it out"
        )
    if calls > schedule.steps:
        raise ConfigError(
            f"last_step.calls is {calls}, but an image is drawn in {schedule.steps} calls (sample.steps); use at most "
            f"{schedule.steps}"
        )
    silent = [call for call in range(schedule.steps - calls, schedule.steps - 1) if not schedule.std[call] > 0]
    if silent:
        raise ConfigError(
            f"last_step.calls {calls} goes back through call {silent[-1] + 1} of {schedule.steps}, at which the "
            f"sampler {sampler} draws no noise: what comes after such a call is not stored; use at most "
            f"{schedule.steps - silent[-1] - 1}"
        )


def record_schedule(schedule: Schedule, guidance_scale: float) -> ScheduleRecord:
    """Write a schedule down."""
    return ScheduleRecord(
        timesteps=tuple(schedule.timesteps.tolist()),
        next_timesteps=tuple(schedule.next_timesteps.tolist()),
        latents_coef=tuple(schedule.latents_coef.tolist()),
        output_coef=tuple(schedule.output_coef.tolist()),
        std=tuple(schedule.std.tolist()),
        initial_scale=schedule.initial_scale,
        guidance_scale=guidance_scale,
    )


def restore_schedule(record: ScheduleRecord) -> Schedule:
    """Make the schedule of a record again, the same to the bit."""
    return Schedule(
        _times(record.timesteps),
        _times(record.next_timesteps),
        torch.tensor(record.latents_coef, dtype=torch.float64),
        torch.tensor(record.output_coef, dtype=torch.float64),
        torch.tensor(record.std, dtype=torch.float64),
        record.initial_scale,
    )


def _times(values: Sequence[float]) -> torch.Tensor:
    """Return times as a sampler has them: whole ones int64, others float64."""
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
