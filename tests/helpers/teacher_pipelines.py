"""A teacher of the tiny latent consistency model."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


def build_teacher(folder: Path, tiny_lcm: Path) -> Path:
    """Save a pipeline of the same parts but for its denoiser, without a guidance embedding: as one not distilled."""
    torch.manual_seed(7)
    settings = UNet2DConditionModel.load_config(tiny_lcm, subfolder="unet")
    StableDiffusionPipeline(
        vae=AutoencoderTiny.from_pretrained(tiny_lcm, subfolder="vae"),
        text_encoder=CLIPTextModel.from_pretrained(tiny_lcm, subfolder="text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(tiny_lcm, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_config({**settings, "time_cond_proj_dim": None}),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
