"""Pipelines of flow matching with a transformer, tiny, with random weights, saved in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_language_models import build_qwen3, build_qwen25_vl, build_tokenizer


def build_flux2_klein(folder: Path, *, distilled: bool = True) -> Path:
    """Save FLUX.2 klein's make: three layers of Qwen3 side by side, packed latents with statistics."""
    torch.manual_seed(4)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 8,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=build_qwen3(layers=27, width=8, head=True),
        tokenizer=build_tokenizer(),
        transformer=transformer,
        is_distilled=distilled,
    ).save_pretrained(folder)
    return folder


def build_z_image(folder: Path, *, shift: float = 3.0) -> Path:
    """Save Z-Image's make; with `shift` 3 that of Z-Image-Turbo, with 6 of Z-Image."""
    torch.manual_seed(5)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 4, 4],
        axes_lens=[128, 32, 32],
    )
    for padding in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(padding)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae,
        text_encoder=build_qwen3(layers=2, width=8, head=False),
        tokenizer=build_tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def build_qwen_image(folder: Path, *, terminal: float | None = None) -> Path:
    """Save Qwen-Image's make: an autoencoder of videos with statistics, texts with a mask.

    With `terminal`, the published one's is 0.02, the last of its noise levels is that.
    """
    torch.manual_seed(6)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=terminal
    )
    QwenImagePipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=build_qwen25_vl(layers=2, width=16),
        tokenizer=build_tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder
