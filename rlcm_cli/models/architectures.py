"""Pipelines of known architectures with random weights: of the real size, for measuring, with nothing to download.

The numbers are those of the configurations that the models are published with: Stable Diffusion 1.5
(arXiv 2112.10752), SDXL base 1.0 (arXiv 2307.01952), and their latent consistency models, whose U-Nets have a guidance
embedding of 256 (arXiv 2310.04378). The tokenizer alone is another, the embedded model's: with token ids of its own,
and sequences of the same 77.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.embedded import embedded_folder
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import DTYPES, STABLE_DIFFUSION_SCHEDULE, freeze_pipeline, load_model
from rlcm_cli.samplers import Sampler
from rlcm_cli.samplers.ddim import SAMPLER as DDIM
from rlcm_cli.samplers.lcm import SAMPLER as LCM

ARCHITECTURES = ("emoji-lcm", "sd15-lcm", "sd15", "sdxl-lcm")
"""The embedded model, which has its own weights, and those that are made of random ones."""

GUIDANCE_EMBEDDING = 256
TOKENS = 77
LATENT_PIXELS = 8

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def build_architecture(name: str, *, dtype: str, device: str, image_size: int | None = None) -> DiffusionModel:
    """Build a model of a known architecture, frozen and in eval mode, like those of `load_model`.

    `image_size`: pixels along each side; None for what it was published with. Raises `ModelError` for an unknown
    name or a size that the model cannot have.
    """
    if name not in ARCHITECTURES:
        raise ModelError(
            f"unknown architecture '{name}'; there are {', '.join(ARCHITECTURES)}; a pipeline's folder is given by "
            "--model"
        )
    if embedded_folder(name) is not None:
        return load_model(name, revision=None, dtype=dtype, device=device, image_size=image_size)
    place = select_device(device)
    with quiet_libraries(), _made_there(place, DTYPES[dtype]):
        pipeline = _sdxl(name) if name.startswith("sdxl") else _stable_diffusion(name)
    freeze_pipeline(pipeline, place)
    model = DiffusionModel(pipeline, _sampler(name), place, DTYPES[dtype], digest_json(["architecture", name, dtype]))
    if image_size is not None:
        model.set_image_size(image_size)
    return model


def _stable_diffusion(name: str) -> Any:
    from diffusers import LatentConsistencyModelPipeline, StableDiffusionPipeline
    from transformers import CLIPTextModel

    tokenizer = _tokenizer()
    kind = LatentConsistencyModelPipeline if name.endswith("lcm") else StableDiffusionPipeline
    return kind(
        vae=_autoencoder(sample_size=512, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_text_config(tokenizer, CLIP_L)),
        tokenizer=tokenizer,
        unet=_unet(name, SD15_UNET),
        scheduler=_scheduler(name),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(name: str) -> Any:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    return StableDiffusionXLPipeline(
        vae=_autoencoder(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(_text_config(tokenizer, CLIP_L)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, CLIP_BIG_G)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(name, SDXL_UNET),
        scheduler=_scheduler(name),
        add_watermarker=False,
    )


def _unet(name: str, settings: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**settings, time_cond_proj_dim=GUIDANCE_EMBEDDING if name.endswith("lcm") else None)


def _autoencoder(**settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**AUTOENCODER, **settings)


def _scheduler(name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, _sampler(name).scheduler)
    return kind(**STABLE_DIFFUSION_SCHEDULE, clip_sample=False)


def _sampler(name: str) -> Sampler:
    return LCM if name.endswith("lcm") else DDIM


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(f"{embedded_folder('emoji-lcm')}/tokenizer", model_max_length=TOKENS)


def _text_config(tokenizer: Any, settings: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )


@contextlib.contextmanager
def _made_there(place: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make modules on their device, in their dtype and from one seed within the block: nothing is copied or cast."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), place:
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(previous)
