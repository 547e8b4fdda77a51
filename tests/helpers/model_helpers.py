"""What the tests of this room share: the tiny pipeline loaded, adapted and drawn with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcm_cli.config import override_section
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.families import FAMILIES
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.loading import freeze_pipeline, load_model
from rlcm_cli.models.lora import attach_lora, lora_parameters
from rlcm_cli.models.variant import Variant
from rlcm_cli.phases.sample import Drawn, draw_batch
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.samplers import SamplerSettings

MODULES = FAMILIES["stable-diffusion"].lora_targets
GUIDANCE = 4.0


def load_tiny(folder: Path, dtype: str = "float32", image_size: tuple[int, int] | None = None) -> LatentModel:
    return load_model(str(folder), revision=None, dtype=dtype, device="cpu", variant=Variant(image_size))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def attach_tiny(model: LatentModel, *, rank: int = 2, alpha: int = 8, run_seed: int = 0, **settings: Any) -> None:
    attach_lora(model, **{"rank": rank, "alpha": alpha, "target_modules": MODULES, "run_seed": run_seed, **settings})


def put_on(model: LatentModel, device: torch.device) -> LatentModel:
    """Put a loaded model on a device as `load_model` does, with an adapter that acts; return it."""
    freeze_pipeline(model.pipeline, model.family, device)
    model.device = device
    model.kept.clear()
    model.forget_prompts()
    attach_tiny(model, target_modules=model.family.lora_targets)
    shake_lora(model)
    return model


def shake_lora(model: LatentModel, seed: int = 1) -> None:
    """Stand in for some updates: every weight of the adapter moves, so that it acts.

    Not by much: from 0.3 on the tiny U-Net is chaotic, and turns rounding of 1e-7 into 1e-3.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def draw(
    model: LatentModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 4,
    guidance_scale: float = GUIDANCE,
    sampler: SamplerSettings | None = None,
    **settings: Any,
) -> Drawn:
    chosen = override_section(sampler or model.sampler.default_settings(), settings)
    schedule = drawing_schedule(chosen, steps, model)
    return draw_batch(model, schedule, prompts, seeds, guidance_scale=guidance_scale, reduction="mean")


def draw_with_diffusers(pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], *, steps: int = 4) -> Tensor:
    """Images uint8 [B, 3, H, W] of the pipeline's own `__call__`."""
    images = pipeline(
        list(prompts),
        num_inference_steps=steps,
        original_inference_steps=50,
        guidance_scale=GUIDANCE,
        generator=[seed_generator(seed) for seed in seeds],
        output_type="pt",
    ).images
    return images.mul(255).round().to(torch.uint8)
