"""Published checkpoints and LoRAs that draw in a few steps with the U-Nets of Stable Diffusion and SDXL.

Guidance 1 is none: what the model cards write as `guidance_scale=0`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlcm_cli.families import Configs
from rlcm_cli.recommendation import Recommendation

HUB = "huggingface.co/"
NOISY = 0.5
"""η that a model is trained with whose own sampler adds no noise."""


SDXL_TURBO, SD_TURBO = "stabilityai/sdxl-turbo", "stabilityai/sd-turbo"
CHECKPOINTS: Mapping[str, Recommendation] = {
    SDXL_TURBO: Recommendation("euler", 4, 1.0, image_size=(512, 512), source=HUB + SDXL_TURBO),
    # Its pipeline has the scheduler without noise; its makers' own program (generative-models, scripts/demo/turbo.py)
    # draws both with the ancestral one.
    SD_TURBO: Recommendation(
        "euler",
        4,
        1.0,
        drawing={"eta": 0.0},
        training={"sampler.eta": 1.0},
        image_size=(512, 512),
        source=HUB + SD_TURBO,
    ),
}
"""Hub id → what its makers recommend. A copy in a folder is known by its scheduler."""


def _with_settings(sampler: str, steps: int, source: str, **settings: Any) -> Recommendation:
    """Return the recommendation of a model that is trained and drawn with the same settings of its sampler."""
    training = {f"sampler.{key}": value for key, value in settings.items()}
    return Recommendation(sampler, steps, 1.0, drawing=settings, training=training, source=HUB + source)


def _trained_with_noise(sampler: str, steps: int, source: str, **settings: Any) -> Recommendation:
    """Return the recommendation of a model that is drawn without noise, and so cannot be trained as it is drawn."""
    own: dict[str, Any] = {**settings, "eta": NOISY}
    training = {f"sampler.{key}": value for key, value in own.items()}
    return Recommendation(
        sampler, steps, 1.0, drawing={**settings, "eta": 0.0}, training=training, source=HUB + source
    )


def recommend_lora(name: str) -> Recommendation | None:
    """Return how a distilled LoRA of a name, a file's or a repository's, is drawn by its makers; None: unknown."""
    low = name.lower().replace("_", "-")
    stated = re.search(r"(\d+)-?steps?", low)
    steps = int(stated[1]) if stated else 4
    if "hyper-sd" in low:
        if "cfg" in low:
            found = _trained_with_noise("ddim", steps, "ByteDance/Hyper-SD", timestep_spacing="trailing")
            return replace(found, guidance_scale=5.0)
        if steps == 1:  # one LoRA for any number of steps
            return _with_settings("tcd", 4, "ByteDance/Hyper-SD", gamma=1.0)
        return _trained_with_noise("ddim", steps, "ByteDance/Hyper-SD", timestep_spacing="trailing")
    if "lightning" in low:
        return _trained_with_noise("euler", steps, "ByteDance/SDXL-Lightning")
    if "dmd2" in low:
        timesteps = {1: (399,)}.get(steps, (999, 749, 499, 249))
        return _with_settings("lcm", len(timesteps), "tianweiy/DMD2", timesteps=list(timesteps))
    if "lcm-lora" in low:
        return Recommendation("lcm", 4, 1.0, source=f"{HUB}latent-consistency")
    if "tcd-" in low:
        return Recommendation("tcd", 4, 1.0, source=f"{HUB}h1t")
    return None


def recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation | None:
    """Return what the makers of a pipeline with a U-Net recommend, by its hub id or by its scheduler.

    Few-step models have a scheduler of Euler with trailing timesteps, which base models have not.
    """
    if distilled_lora is not None:
        return recommend_lora(distilled_lora.rstrip("/"))
    known = CHECKPOINTS.get(name)
    scheduler = configs.scheduler or {}
    if known is not None or scheduler.get("timestep_spacing") != "trailing":
        return known
    own = scheduler.get("_class_name")
    if own == "EulerAncestralDiscreteScheduler":
        return Recommendation("euler", 4, 1.0, source="scheduler/scheduler_config.json: ancestral, trailing")
    if own == "EulerDiscreteScheduler":
        found = _trained_with_noise("euler", 4, "")
        return replace(found, source="scheduler/scheduler_config.json: Euler, trailing")
    return None
