"""A plain Stable Diffusion pipeline around the tiny latent consistency model's other parts."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


def build_plain_diffusion(folder: Path, tiny_lcm: Path, *, prediction_type: str = "epsilon") -> Path:
    """Save a pipeline with 8x8 latents and 16x16 images, whose policy is ddim."""
    torch.manual_seed(5)
    settings = UNet2DConditionModel.load_config(tiny_lcm, subfolder="unet")
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.18215,
        ),
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
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
