"""FLUX.1: schnell, distilled to four steps, and dev, whose guidance is distilled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import (
    Architecture,
    Autoencoder,
    Configs,
    Family,
    ForeignNames,
    Guidance,
    Latents,
    Loading,
    Scheduling,
    TextEncoding,
    class_of,
)
from rlcm_cli.families import _autoencoder as vae
from rlcm_cli.families import _clip as clip
from rlcm_cli.families import _flow as flow
from rlcm_cli.families import _t5 as t5
from rlcm_cli.families import _unet as unet
from rlcm_cli.families.stable_diffusion_3 import AUTOENCODER as SD3_AUTOENCODER
from rlcm_cli.families.stable_diffusion_3 import LORA_TARGETS
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

DENOISER = "transformer"
PIPELINE = "FluxPipeline"
PATCH = 2
"""Latents of a side that the transformer is fed as one token."""
TOKENS, DEV_TOKENS = 256, 512
"""That T5 reads of a prompt, by the model cards of schnell and dev; shorter ones are filled up."""
HUB = "https://huggingface.co/black-forest-labs/"
DEV_GUIDANCE = 3.5
TURBO_LORA = "https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha"
"""Card of the usual LoRA that few steps were distilled into, for dev."""

# Configurations, as the models are published with them

AUTOENCODER = {**SD3_AUTOENCODER, "scaling_factor": 0.3611, "shift_factor": 0.1159}
SCHNELL_SCHEDULER = {"shift": 1.0}
TRANSFORMER: Mapping[str, Any] = {"joint_attention_dim": 4096, "pooled_projection_dim": 768}


def _recognise(index: Mapping[str, Any]) -> bool:
    return class_of(index, DENOISER) == "FluxTransformer2DModel"


def _find_fault(configs: Configs) -> str | None:
    taken, given = configs.denoiser.get("in_channels"), configs.denoiser.get("out_channels")
    if given is not None and taken != given:
        return f"does not generate from text only: its transformer takes {taken} channels and gives {given}"
    kind = str(configs.index.get("_class_name"))
    if "Kontext" in kind:
        return f"edits images ({kind})"
    return None


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    for suffix in ("", "_2"):
        clip.check_tokens(name, parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"], f"tokenizer{suffix}")
    transformer = parts[DENOISER].config
    vae.check_autoencoder(name, parts["vae"].config, DENOISER, transformer.in_channels // PATCH**2)
    widths = {
        "text_encoder": (parts["text_encoder"].config.hidden_size, transformer.pooled_projection_dim),
        "text_encoder_2": (parts["text_encoder_2"].config.d_model, transformer.joint_attention_dim),
    }
    for part, (given, taken) in widths.items():
        if given != taken:
            raise ModelError(
                f"{name}: its {part} gives vectors of {given} numbers, and its transformer takes {taken}; use the one "
                "that belongs to it"
            )


# The noise, and how it is taken out


def _read_noise(model: LoadedPipeline) -> Noise:
    def name_arguments(steps: int) -> dict[str, Any]:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        _, height, width = _latent_shape(model.pipeline, *model.image_size)
        shift = flow.read_shift(model.pipeline.scheduler.config)
        return {
            "sigmas": flow.list_even_sigmas(steps),
            "mu": calculate_shift((height // PATCH) * (width // PATCH), **shift),
        }

    return flow.read_noise(model, name_arguments)


def _is_guided(settings: Mapping[str, Any]) -> bool:
    """Return whether a transformer takes the guidance scale as an embedding, as that of dev does, or knows none."""
    return bool(settings.get("guidance_embeds"))


def _predict(
    model: LoadedPipeline,
    latents: Tensor,
    times: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    """Predict as the pipeline does, of packed latents; without its true_cfg_scale, which is off by default there."""
    import torch

    pipeline, embeds = model.pipeline, conditioning["prompt_embeds"]
    batch, channels, height, width = latents.shape
    guidance = None
    if _is_guided(model.denoiser.config):
        guidance = torch.full((batch,), guidance_scale, dtype=torch.float32, device=latents.device)
    output: Tensor = model.denoiser(
        hidden_states=pipeline._pack_latents(latents, batch, channels, height, width),
        # Rounded where the pipeline rounds it.
        timestep=times.float().to(latents.dtype) / 1000,
        guidance=guidance,
        pooled_projections=conditioning["pooled_prompt_embeds"],
        encoder_hidden_states=embeds,
        txt_ids=torch.zeros(embeds.shape[1], 3, dtype=embeds.dtype, device=embeds.device),
        img_ids=_place_tokens(model, height // PATCH, width // PATCH, embeds),
        return_dict=False,
    )[0]
    scale = pipeline.vae_scale_factor
    unpacked: Tensor = pipeline._unpack_latents(output, height * scale, width * scale, scale)
    return unpacked


def _place_tokens(model: LoadedPipeline, height: int, width: int, beside: Tensor) -> Tensor:
    """Return the place of each token of an image, [height · width, 3], with the dtype and device of a tensor."""
    # Kept, since a copy to the device at each call would wait for all that was asked of it before.
    key = ("places", height, width, beside.dtype, beside.device)
    if key not in model.kept:
        places = model.pipeline._prepare_latent_image_ids(1, height, width, beside.device, beside.dtype)
        model.kept[key] = places
    return model.kept[key]


# Texts


def _count_tokens(pipeline: Any) -> int:
    return DEV_TOKENS if _is_guided(pipeline.transformer.config) else TOKENS


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt: `prompt_embeds` [tokens, width] by T5, `pooled_prompt_embeds` [width] by CLIP."""
    pipeline = model.pipeline
    embeds, pooled, _ = pipeline.encode_prompt(
        prompt, device=model.device, max_sequence_length=_count_tokens(pipeline)
    )
    return {"prompt_embeds": embeds[0], "pooled_prompt_embeds": pooled[0]}


def _count_cut(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    return t5.count_cut_prompts(pipeline.tokenizer_2, prompts, _count_tokens(pipeline))


# Sizes, and images


def _own_size(pipeline: Any) -> tuple[int, int]:
    side = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
    return side, side


def _set_size(pipeline: Any, height: int, width: int) -> None:
    flow.check_size(height, width, PATCH * int(pipeline.vae_scale_factor))


def _latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    scale = int(pipeline.vae_scale_factor)
    return int(pipeline.transformer.config.in_channels) // PATCH**2, height // scale, width // scale


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    return vae.decode(model.pipeline.vae, latents)


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    return vae.encode(model.pipeline.vae, images)


# What others say of the models


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    """Return what Black Forest Labs recommends; dev is trained as Flow-GRPO (arXiv 2505.05470) does."""
    size = (1024, 1024)
    if not _is_guided(configs.denoiser):
        return flow.recommend(4, 0.0, image_size=size, source=f"{HUB}FLUX.1-schnell")
    if distilled_lora is not None:
        return flow.recommend(8, DEV_GUIDANCE, image_size=size, source=TURBO_LORA)
    base = flow.recommend(50, DEV_GUIDANCE, image_size=size, source=f"{HUB}FLUX.1-dev")
    return flow.train_base(base, {"sample.steps": 6, "sampler.noise": "flow-sde", "sampler.eta": 0.9})


def _describe(pipeline: Any) -> tuple[str, dict[str, str]]:
    make = "dev" if _is_guided(pipeline.transformer.config) else "schnell"
    return f"FLUX.1 {make}", {"ss_base_model_version": "flux1", "modelspec.architecture": f"flux-1-{make}/lora"}


def _name_guidance(pipeline: Any, guidance_scale: float) -> dict[str, str]:
    return {"FluxGuidance": f"{guidance_scale:g}"} if _is_guided(pipeline.transformer.config) else {}


# A pipeline of published size with random weights


def _build() -> Any:
    import diffusers

    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHNELL_SCHEDULER),
        vae=diffusers.AutoencoderKL(**AUTOENCODER),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=diffusers.FluxTransformer2DModel(**TRANSFORMER),
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import CLIPTextModel

    return {
        "text_encoder": CLIPTextModel(unet.build_text_config(unet.CLIP_L)),
        "text_encoder_2": t5.build_encoder(),
    }


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    import torch

    config = model.denoiser.config
    return {
        "prompt_embeds": torch.randn(_count_tokens(model.pipeline), config.joint_attention_dim),
        "pooled_prompt_embeds": torch.randn(config.pooled_projection_dim),
    }


SCHNELL = Architecture(_build, _build_text_encoders, _recommend("", Configs({}, {}, None), None))


FAMILY = Family(
    kind="flux",
    title="FLUX.1",
    pipelines=(PIPELINE,),
    denoiser=DENOISER,
    recognise=_recognise,
    loading=Loading(
        components={
            "transformer": "diffusers",
            "vae": "diffusers",
            "text_encoder": "transformers",
            "tokenizer": "transformers",
            "text_encoder_2": "transformers",
            "tokenizer_2": "transformers",
        },
        find_fault=_find_fault,
        assemble=lambda configs: (PIPELINE, {}),
        check_fit=_check_fit,
    ),
    scheduling=Scheduling(
        default=(flow.SCHEDULER, SCHNELL_SCHEDULER),
        check=flow.check_scheduler,
        overrides={},
        read_noise=_read_noise,
        choose_sampler=flow.choose_sampler,
        recommend=_recommend,
    ),
    guidance=Guidance(
        is_embedded=_is_guided,
        count_predictions=lambda settings, guidance_scale: 1,
        recommend=lambda settings: DEV_GUIDANCE if _is_guided(settings) else 0.0,
    ),
    latents=Latents(_own_size, _set_size, _latent_shape),
    text=TextEncoding(
        _encode,
        _count_cut,
        _stand_in,
        overflows_float16=True,
        arguments=lambda model: {"max_sequence_length": _count_tokens(model.pipeline)},
    ),
    # diffusers decodes it in float16 whatever its force_upcast says.
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: False),
    predict=_predict,
    lora_targets=LORA_TARGETS,
    names=ForeignNames(
        "lora_transformer",
        lambda name, config, names: name,
        _describe,
        kohya_in_diffusers=False,
        comfyui=_name_guidance,
    ),
    architectures={"flux-schnell": SCHNELL},
)
