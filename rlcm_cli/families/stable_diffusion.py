"""Stable Diffusion 1.x and 2.x (arXiv 2112.10752), and latent consistency models of their size (arXiv 2310.04378)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcm_cli.families import Autoencoder, Configs, Family, ForeignNames, Guidance, Latents, Loading, TextEncoding
from rlcm_cli.families import _autoencoder as vae
from rlcm_cli.families import _clip as clip
from rlcm_cli.families import _unet as unet
from rlcm_cli.samplers import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""As the configuration of Stable Diffusion 1.5 has it."""


def _recognise(index: Mapping[str, Any]) -> bool:
    return unet.has_unet(index) and "text_encoder_2" not in index


def _assemble(configs: Configs) -> tuple[str, dict[str, Any]]:
    kind = PIPELINES[unet.is_guided_by_embedding(configs.denoiser)]
    return kind, {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    clip.check_tokens(name, parts["tokenizer"], parts["text_encoder"], "tokenizer")
    config, encoders = parts["unet"].config, [parts["text_encoder"].config]
    unet.check_unet(name, config, encoders, added=None)
    vae.check_autoencoder(name, parts["vae"].config, unet.DENOISER, config.in_channels)
    unet.check_width(name, config, encoders)


def _recommend_guidance(config: Mapping[str, Any]) -> float:
    return 8.5 if unet.is_guided_by_embedding(config) else 7.5


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    guided_twice = not unet.is_guided_by_embedding(model.denoiser.config)
    return clip.encode_prompt(model.pipeline, prompt, model.device, guided_twice=guided_twice)


def _name_arguments(conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"encoder_hidden_states": conditioning["prompt_embeds"]}


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    return vae.decode(model.pipeline.vae, latents)


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    return vae.encode(model.pipeline.vae, images)


def _describe(pipeline: Any) -> tuple[str, dict[str, str]] | None:
    width = pipeline.unet.config.cross_attention_dim
    if width == 768:
        version, architecture, title = "sd_v1", "stable-diffusion-v1", "Stable Diffusion 1"
    elif width == 1024:
        predicts_v = pipeline.scheduler.config.prediction_type == "v_prediction"
        version, title = "sd_v2", "Stable Diffusion 2"
        architecture = f"stable-diffusion-v2-{'768-v' if predicts_v else '512'}"
    else:  # a make that these tools have no name for
        return None
    return title, {
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
        "modelspec.architecture": f"{architecture}/lora",
    }


def _build_sd15(sampler: Sampler, guidance_embedding: int | None) -> Any:
    import diffusers

    return getattr(diffusers, PIPELINES[guidance_embedding is not None])(
        vae=diffusers.AutoencoderKL(**unet.AUTOENCODER, sample_size=512, scaling_factor=0.18215),
        text_encoder=None,
        tokenizer=None,
        unet=diffusers.UNet2DConditionModel(**SD15_UNET, time_cond_proj_dim=guidance_embedding),
        scheduler=unet.build_scheduler(sampler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import CLIPTextModel

    return {"text_encoder": CLIPTextModel(unet.build_text_config(unet.CLIP_L))}


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    return unet.make_embeddings(model, prompt_embeds=(unet.TOKENS, model.denoiser.config.cross_attention_dim))


FAMILY = Family(
    kind="stable-diffusion",
    title="Stable Diffusion 1.x and 2.x, and LCMs of their size",
    pipelines=PIPELINES,
    denoiser=unet.DENOISER,
    recognise=_recognise,
    loading=Loading(
        components={
            "unet": "diffusers",
            "vae": "diffusers",
            "text_encoder": "transformers",
            "tokenizer": "transformers",
        },
        find_fault=unet.find_other_inputs,
        assemble=_assemble,
        check_fit=_check_fit,
    ),
    scheduling=unet.SCHEDULING,
    guidance=Guidance(unet.is_guided_by_embedding, unet.count_predictions, _recommend_guidance),
    latents=Latents(unet.own_size, unet.set_size, unet.latent_shape),
    text=TextEncoding(_encode, clip.count_cut_prompts, _stand_in),
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: False),
    predict=partial(unet.predict, _name_arguments),
    lora_targets=unet.LORA_TARGETS,
    names=ForeignNames(unet.KOHYA, unet.spell_as_sgm, _describe, single_file=("cond_stage_model.",)),
    architectures=unet.list_architectures({"sd15-lcm": _build_sd15, "sd15": _build_sd15}, _build_text_encoders),
)
