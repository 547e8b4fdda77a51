"""Stable Diffusion XL (arXiv 2307.01952), and latent consistency models of its size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import (
    Autoencoder,
    Configs,
    Family,
    ForeignNames,
    Guidance,
    Latents,
    Loading,
    TextEncoding,
    class_of,
)
from rlcm_cli.families import _autoencoder as vae
from rlcm_cli.families import _clip as clip
from rlcm_cli.families import _unet as unet
from rlcm_cli.samplers import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

EMPTY_PROMPT = "force_zeros_for_empty_prompt"
CLIP_BIG_G: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SDXL_UNET: Mapping[str, Any] = {
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
"""As the configurations of SDXL base 1.0 have it."""
SIZES = 6
"""Numbers that tell the size of an image, each embedded by itself."""


def _recognise(index: Mapping[str, Any]) -> bool:
    return unet.has_unet(index) and "text_encoder_2" in index


def _find_fault(configs: Configs) -> str | None:
    if class_of(configs.index, "text_encoder") is None:
        return "is SDXL's refiner, which does not generate images by itself"
    return unet.find_other_inputs(configs)


def _assemble(configs: Configs) -> tuple[str, dict[str, Any]]:
    stated = {key: bool(value) for key, value in configs.index.items() if key == EMPTY_PROMPT}
    return "StableDiffusionXLPipeline", {"add_watermarker": False, **stated}


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    for suffix in ("", "_2"):
        clip.check_tokens(name, parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"], f"tokenizer{suffix}")
    config, encoders = parts["unet"].config, [parts[part].config for part in ("text_encoder", "text_encoder_2")]
    unet.check_unet(name, config, encoders, added="text_time")
    vae.check_autoencoder(name, parts["vae"].config, unet.DENOISER, config.in_channels)
    unet.check_width(name, config, encoders)
    added = encoders[-1].projection_dim + SIZES * config.addition_time_embed_dim
    if added != config.projection_class_embeddings_input_dim:
        raise ModelError(
            f"{name}: its text_encoder_2 and sizes give {added} numbers, and its unet takes "
            f"{config.projection_class_embeddings_input_dim}; use the text encoder that belongs to it"
        )


def _set_size(pipeline: Any, height: int, width: int) -> None:
    unet.set_size(pipeline, height, width)
    if height == width:
        pipeline.default_sample_size = height // int(pipeline.vae_scale_factor)


def _recommend_guidance(config: Mapping[str, Any]) -> float:
    return 8.5 if unet.is_guided_by_embedding(config) else 5.0


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt; in addition to what Stable Diffusion has, two pooled tables and `time_ids` [6]."""
    guided_twice = not unet.is_guided_by_embedding(model.denoiser.config)
    rows = clip.encode_prompt(model.pipeline, prompt, model.device, guided_twice=guided_twice)
    return {**rows, "time_ids": _list_sizes(model)}


def _list_sizes(model: LoadedPipeline) -> Tensor:
    """Return original size, crop from the top left, target size (arXiv 2307.01952, section 2.2), [6]."""
    import torch

    height, width = model.image_size
    return torch.tensor([height, width, 0, 0, height, width], dtype=model.dtype)


def _name_arguments(conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "encoder_hidden_states": conditioning["prompt_embeds"],
        "added_cond_kwargs": {
            "text_embeds": conditioning["pooled_prompt_embeds"],
            "time_ids": conditioning["time_ids"],
        },
    }


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    return vae.decode(model.pipeline.vae, latents, *_read_statistics(model, latents, model.pipeline.vae.dtype))


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    return vae.encode(model.pipeline.vae, images, *_read_statistics(model, images, model.pipeline.vae.dtype))


def _read_statistics(model: LoadedPipeline, beside: Tensor, dtype: Any) -> tuple[Tensor | float, Tensor | float]:
    """Return mean and standard deviation of the latents, [1, C, 1, 1] each on the device of a tensor, if stated."""
    config = model.pipeline.vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return 0.0, 1.0
    mean, std = (beside.new_tensor(values, dtype=dtype).view(1, -1, 1, 1) for values in (mean, std))
    return mean, std


def _describe(pipeline: Any) -> tuple[str, dict[str, str]]:
    return "Stable Diffusion XL", {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    }


def _build_sdxl(sampler: Sampler, guidance_embedding: int | None) -> Any:
    import diffusers

    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(**unet.AUTOENCODER, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=diffusers.UNet2DConditionModel(**SDXL_UNET, time_cond_proj_dim=guidance_embedding),
        scheduler=unet.build_scheduler(sampler),
        add_watermarker=False,
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return {
        "text_encoder": CLIPTextModel(unet.build_text_config(unet.CLIP_L)),
        "text_encoder_2": CLIPTextModelWithProjection(unet.build_text_config(CLIP_BIG_G)),
    }


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    config = model.denoiser.config
    pooled = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
    embeddings = unet.make_embeddings(
        model, prompt_embeds=(unet.TOKENS, config.cross_attention_dim), pooled_prompt_embeds=(pooled,)
    )
    return {**embeddings, "time_ids": _list_sizes(model)}


FAMILY = Family(
    kind="sdxl",
    title="Stable Diffusion XL",
    pipelines=("StableDiffusionXLPipeline",),
    denoiser=unet.DENOISER,
    recognise=_recognise,
    loading=Loading(
        components={
            "unet": "diffusers",
            "vae": "diffusers",
            "text_encoder": "transformers",
            "tokenizer": "transformers",
            "text_encoder_2": "transformers",
            "tokenizer_2": "transformers",
        },
        find_fault=_find_fault,
        assemble=_assemble,
        check_fit=_check_fit,
        settings=(EMPTY_PROMPT,),
    ),
    scheduling=unet.SCHEDULING,
    guidance=Guidance(unet.is_guided_by_embedding, unet.count_predictions, _recommend_guidance),
    latents=Latents(unet.own_size, _set_size, unet.latent_shape),
    text=TextEncoding(_encode, clip.count_cut_prompts, _stand_in),
    # diffusers casts it there and back at each image.
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: bool(config.get("force_upcast"))),
    predict=partial(unet.predict, _name_arguments),
    lora_targets=unet.LORA_TARGETS,
    names=ForeignNames(
        unet.KOHYA, unet.spell_as_sgm, _describe, single_file=("conditioner.embedders.1.", "conditioner.embedders.0.")
    ),
    architectures=unet.list_architectures({"sdxl-lcm": _build_sdxl, "sdxl-turbo": _build_sdxl}, _build_text_encoders),
)
