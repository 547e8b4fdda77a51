"""The two diffusers pipelines of the recipe: their parts, how they are put together and written."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from examples.emoji_lcm import text
from examples.emoji_lcm.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from examples.emoji_lcm.paths import replace_folder

GUIDANCE_DIM = 256
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def new_unet(*, guidance_embedding: bool) -> UNet2DConditionModel:
    """Build an untrained U-Net of 5.4 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 128),
        layers_per_block=1,
        # diffusers reads this as the NUMBER of heads.
        attention_head_dim=4,
        cross_attention_dim=text.WIDTH,
        time_cond_proj_dim=GUIDANCE_DIM if guidance_embedding else None,
    )


def new_ddim() -> DDIMScheduler:
    """Build the teacher's scheduler."""
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def new_lcm_scheduler() -> LCMScheduler:
    """Build the student's scheduler."""
    return LCMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, original_inference_steps=50
    )


def save_teacher(
    folder: Path,
    vae: AutoencoderTiny,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Write a StableDiffusionPipeline folder, float16."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _save(pipe, folder)


def save_lcm(
    folder: Path,
    vae: AutoencoderTiny,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Write a LatentConsistencyModelPipeline folder, float16."""
    pipe = LatentConsistencyModelPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_lcm_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _save(pipe, folder)


def _save(pipe: StableDiffusionPipeline | LatentConsistencyModelPipeline, folder: Path) -> None:
    def write(fresh: Path) -> None:
        write_float16(pipe, fresh, denoiser="unet")
        # AutoencoderTiny derives this key itself and warns where a file has it.
        edit_json(fresh / "vae" / "config.json", block_out_channels=None)

    replace_folder(folder, write)


def write_float16(pipe: DiffusionPipeline, folder: Path, *, denoiser: str) -> None:
    """Write a pipeline in float16, without the places of its parts. The pipeline's own parts become float16."""
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    # Without a dtype in the call, transformers would load float16 and diffusers float32: they must agree.
    edit_json(folder / "text_encoder" / "config.json", dtype="float32")
    for part in (denoiser, "vae"):
        edit_json(folder / part / "config.json", _name_or_path=None)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def edit_json(path: Path, **changes: str | None) -> None:
    """Set keys of a JSON object; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in content.items() if key not in changes or value is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
