"""Pipelines of the real architectures, tiny, with random weights, saved in the hub's layout."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_sana import build_sana, build_sana_sprint
from tiny_t5_pipelines import build_flux, build_sd3
from tiny_transformers import build_flux2_klein, build_qwen_image, build_z_image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rlcm_cli.models.embedded import embedded_folder

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    # As the hub's scheduler_config.json of stable-diffusion-v1-5, stable-diffusion-2-1 and sdxl-base-1.0; a PNDM file
    # that diffusers writes today says nothing of clipping.
    "pndm": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "v_prediction": lambda: DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
    ),
    "euler": lambda: EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
    "turbo": lambda: EulerAncestralDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="trailing"),
    "lightning": lambda: EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="trailing"),
    "lcm": lambda: LCMScheduler(**BETAS),
    "tcd": lambda: TCDScheduler(**BETAS),
}
LATENTS_MEAN, LATENTS_STD = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]


def build_sd(folder: Path, *, scheduler: str = "pndm") -> Path:
    """Save Stable Diffusion 1.5's make; with `scheduler="v_prediction"` that of 2.1."""
    torch.manual_seed(1)
    tokenizer = _tokenizer()
    StableDiffusionPipeline(
        vae=_autoencoder(scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=16)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            **_unet_settings(),
            cross_attention_dim=16,
            attention_head_dim=(2, 4) if scheduler == "v_prediction" else 2,
            use_linear_projection=scheduler == "v_prediction",
        ),
        scheduler=SCHEDULERS[scheduler](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def build_sdxl(
    folder: Path, *, scheduler: str = "euler", guided_by_embedding: bool = False, zeros_for_empty_prompt: bool = True
) -> Path:
    """Save SDXL's make: two text encoders, the second with a projection; text and size as added conditioning."""
    torch.manual_seed(2)
    tokenizer = _tokenizer()
    StableDiffusionXLPipeline(
        vae=_autoencoder(scaling_factor=0.13025, latents_mean=LATENTS_MEAN, latents_std=LATENTS_STD),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=16)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, width=24, projection=20)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            **_unet_settings(),
            cross_attention_dim=16 + 24,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
            time_cond_proj_dim=32 if guided_by_embedding else None,
        ),
        scheduler=SCHEDULERS[scheduler](),
        force_zeros_for_empty_prompt=zeros_for_empty_prompt,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


BUILDERS: Mapping[str, Mapping[str, Callable[[Path], Path]]] = {
    "stable-diffusion": {
        "sd1": build_sd,
        "sd2": functools.partial(build_sd, scheduler="v_prediction"),
        "sd-turbo": functools.partial(build_sd, scheduler="turbo"),
    },
    "sdxl": {
        "sdxl": build_sdxl,
        "sdxl-turbo": functools.partial(build_sdxl, scheduler="turbo"),
        "sdxl-lightning": functools.partial(build_sdxl, scheduler="lightning"),
        "sdxl-lcm": functools.partial(build_sdxl, scheduler="lcm", guided_by_embedding=True),
    },
    "sana-sprint": {"sana-sprint": build_sana_sprint},
    "sana": {"sana": build_sana},
    "flux2-klein": {
        "klein": build_flux2_klein,
        "klein-base": functools.partial(build_flux2_klein, distilled=False),
    },
    "z-image": {"z-image-turbo": build_z_image},
    "qwen-image": {"qwen-image": build_qwen_image},
    "stable-diffusion-3": {
        "sd35-medium": build_sd3,
        "sd3-without-t5": functools.partial(build_sd3, t5=False, new=False),
    },
    "flux": {"schnell": build_flux, "dev": functools.partial(build_flux, guided=True)},
}
"""Family → name → what saves a pipeline of it, for the tests that every family passes."""
SIZES: Mapping[str, tuple[int, int]] = {
    "flux2-klein": (16, 24),
    "z-image": (16, 24),
    "qwen-image": (16, 24),
    "flux": (16, 24),
}
"""Family → (height, width) in pixels to draw, where its pipelines draw none that is tiny unless they are asked."""


def save_distilled_lora(pipeline: Any, folder: Path, *, kohya: bool = False) -> Path:
    """Save a LoRA as LCM-LoRA has it, on attention and convolutions, that visibly acts; alpha is 4 times its rank.

    With diffusers' names and its metadata, or with kohya's and an alpha a module, as LCM-LoRA's own file.
    """
    torch.manual_seed(3)
    modules = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.2"]
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=modules)
    pipeline.unet.add_adapter(config, adapter_name="distilled")
    metadata = {key: sorted(v) if isinstance(v, set) else v for key, v in config.to_dict().items()}
    layers = get_peft_model_state_dict(pipeline.unet, adapter_name="distilled")
    pipeline.save_lora_weights(
        folder,
        # Weak enough not to make the tiny U-Net chaotic.
        unet_lora_layers={name: 0.3 * tensor for name, tensor in layers.items()},
        unet_lora_adapter_metadata=metadata,
    )
    pipeline.unet.delete_adapters("distilled")
    file = folder / "pytorch_lora_weights.safetensors"
    if kohya:
        tensors = convert_state_dict_to_kohya(load_file(file))
        alphas = {key: torch.tensor(8.0) for key in tensors if key.endswith(".alpha")}
        save_file({key: tensor.contiguous() for key, tensor in (tensors | alphas).items()}, file)
    return file


def edit_scheduler(folder: Path, **changes: Any) -> None:
    """Change entries of the scheduler's file; None takes an entry out."""
    file = folder / "scheduler" / "scheduler_config.json"
    settings: Mapping[str, Any] = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(embedded_folder("emoji-lcm") / "tokenizer")


def _text_config(tokenizer: CLIPTokenizer, *, width: int, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=projection,
        # SDXL takes the last but one.
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _unet_settings() -> dict[str, Any]:
    return {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }


def _autoencoder(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )
