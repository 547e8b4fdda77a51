"""Noise schedules that are stated as betas, and the samplers that draw with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import LoadedPipeline
from rlcm_cli.samplers import Noise

STABLE_DIFFUSION_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The schedule of all Stable Diffusion models, for folders that state none (early LCM_Dreamshaper_v7)."""
UNCLIPPED = {"clip_sample": False, "thresholding": False}
"""DDIM clips unless told not to."""


def read_noise(model: LoadedPipeline) -> Noise:
    """Return the noise of a model: ᾱ of its training schedule, float32 [train steps], on the CPU."""
    scheduler = model.pipeline.scheduler
    return Noise(scheduler.config, scheduler.alphas_cumprod.cpu())


def check_scheduler(name: str, scheduler: Any, stated: Mapping[str, Any] | None) -> None:
    """Raise `ModelError` where no Gaussian policy can be drawn with a scheduler, or its noise levels are no schedule.

    `stated`: what the scheduler's file says, where it has one.
    """
    config = scheduler.config
    if "beta_schedule" not in config:
        raise ModelError(
            f"{name}: its scheduler, {type(scheduler).__name__}, states no schedule of betas, which the "
            "samplers draw with; use a Stable Diffusion pipeline that was trained with one"
        )
    # StableDiffusionPipeline corrects a scheduler that clips without a word: look at the file as well.
    if any(settings.get(key) for settings in (config, stated or {}) for key in UNCLIPPED):
        raise ModelError(
            f"{name}: its scheduler clips or thresholds predictions, so its samples follow no Gaussian policy; "
            "set clip_sample and thresholding to false in scheduler/scheduler_config.json"
        )
    _check_levels(name, scheduler)


def _check_levels(name: str, scheduler: Any) -> None:
    """Raise `ModelError` unless ᾱ falls from at most 1 to at least 0 over the training steps."""
    import torch

    alphas = scheduler.alphas_cumprod
    falls = (alphas[1:] <= alphas[:-1]).all() if len(alphas) else False
    if not (falls and torch.isfinite(alphas).all() and alphas[0] <= 1 and alphas[-1] >= 0 and alphas[0] > 0):
        raise ModelError(
            f"{name}: the noise schedule of scheduler/scheduler_config.json does not fall from 1 towards 0 "
            "(beta_start, beta_end, trained_betas, num_train_timesteps); fix it"
        )
