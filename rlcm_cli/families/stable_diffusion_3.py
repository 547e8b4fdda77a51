"""Stable Diffusion 3 (arXiv 2403.03206) and 3.5, distilled to four steps (large-turbo) and base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
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
from rlcm_cli.families.sdxl import CLIP_BIG_G
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise
from rlcm_cli.samplers.flow import SAMPLER as FLOW

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

DENOISER = "transformer"
PIPELINE = "StableDiffusion3Pipeline"
T5, T5_TOKENIZER = "text_encoder_3", "tokenizer_3"
TOKENS = 256
"""That T5 reads of a prompt, if the pipeline is not told otherwise; shorter ones are filled up."""
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of attention, of images and of texts."""
SHIFT = 3.0
"""Of the noise levels, by the schedulers of all published models."""

# Configurations, as the models are published with them

AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
LARGE_LAYERS = 38
LARGE: Mapping[str, Any] = {
    "sample_size": 128,
    "num_layers": LARGE_LAYERS,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}


def _recognise(index: Mapping[str, Any]) -> bool:
    return class_of(index, DENOISER) == "SD3Transformer2DModel"


def _find_fault(configs: Configs) -> str | None:
    taken, given = configs.denoiser.get("in_channels"), configs.denoiser.get("out_channels")
    if taken == given:
        return None
    return f"does not generate from text only: its transformer takes {taken} channels and gives {given}"


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    for suffix in ("", "_2", "_3"):
        if parts[f"text_encoder{suffix}"] is not None:
            clip.check_tokens(name, parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"], f"tokenizer{suffix}")
    transformer, t5_encoder = parts[DENOISER].config, parts[T5]
    vae.check_autoencoder(name, parts["vae"].config, DENOISER, transformer.in_channels)
    encoders = [parts[part].config for part in ("text_encoder", "text_encoder_2")]
    pooled = sum(encoder.projection_dim for encoder in encoders)
    if pooled != transformer.pooled_projection_dim:
        raise ModelError(
            f"{name}: its text_encoder and text_encoder_2 give {pooled} numbers of a whole text, and its transformer "
            f"takes {transformer.pooled_projection_dim}; use the text encoders that belong to it"
        )
    # Those of CLIP are side by side, and filled up with zeros.
    width = sum(encoder.hidden_size for encoder in encoders)
    taken = transformer.joint_attention_dim
    if width > taken or (t5_encoder is not None and t5_encoder.config.d_model != taken):
        given = width if width > taken else t5_encoder.config.d_model
        raise ModelError(
            f"{name}: its text encoders give vectors of {given} numbers, and its transformer takes {taken}; use the "
            "text encoders that belong to it"
        )


# The noise, and how it is taken out


def _read_noise(model: LoadedPipeline) -> Noise:
    def name_arguments(steps: int) -> dict[str, Any]:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        scheduler, patch = model.pipeline.scheduler.config, model.pipeline.patch_size
        if not scheduler.use_dynamic_shifting:
            return {"num_inference_steps": steps}
        _, height, width = _latent_shape(model.pipeline, *model.image_size)
        shift = calculate_shift((height // patch) * (width // patch), **flow.read_shift(scheduler))
        return {"num_inference_steps": steps, "mu": shift}

    return flow.read_noise(model, name_arguments)


def _count_predictions(settings: Mapping[str, Any], guidance_scale: float) -> int:
    return 1 + (guidance_scale > 1)


def _predict(
    model: LoadedPipeline,
    latents: Tensor,
    times: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    """Predict as the pipeline does: above 1 with classifier-free guidance, v(∅) + guidance_scale · (v(c) − v(∅))."""
    times = times.float()
    if _count_predictions({}, guidance_scale) == 1:
        return _call(model, latents, times, conditioning)
    both = _call(model, latents.repeat(2, 1, 1, 1), times.repeat(2), clip.with_negative(conditioning))
    negative, positive = both.chunk(2)
    return negative + guidance_scale * (positive - negative)


def _call(model: LoadedPipeline, latents: Tensor, times: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
    output: Tensor = model.denoiser(
        hidden_states=latents,
        timestep=times,
        encoder_hidden_states=conditioning["prompt_embeds"],
        pooled_projections=conditioning["pooled_prompt_embeds"],
        return_dict=False,
    )[0]
    return output


# Texts


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt and the empty one: `prompt_embeds` [77 + 256, width], `pooled_prompt_embeds` [width].

    Without T5, zeros are in the place of what it gives.
    """
    encoded = model.pipeline.encode_prompt(
        prompt, None, None, device=model.device, do_classifier_free_guidance=True, max_sequence_length=TOKENS
    )
    return {name: tensor[0] for name, tensor in zip(clip.ENCODED, encoded, strict=True)}


def _count_cut(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    """Count the prompts that are longer than T5 reads, or without it CLIP."""
    if pipeline.text_encoder_3 is None:
        return clip.count_cut_prompts(pipeline, prompts)
    return t5.count_cut_prompts(pipeline.tokenizer_3, prompts, TOKENS)


# Sizes, and images


def _own_size(pipeline: Any) -> tuple[int, int]:
    side = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
    return side, side


def _set_size(pipeline: Any, height: int, width: int) -> None:
    unit = int(pipeline.vae_scale_factor * pipeline.patch_size)
    flow.check_size(height, width, unit)
    longest = unit * int(pipeline.transformer.config.pos_embed_max_size)
    if max(height, width) > longest:
        raise ModelError(
            f"images of {width} x {height} pixels: this model's have at most {longest}; choose a smaller size"
        )


def _latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    scale = int(pipeline.vae_scale_factor)
    return int(pipeline.transformer.config.in_channels), height // scale, width // scale


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    return vae.decode(model.pipeline.vae, latents)


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    return vae.encode(model.pipeline.vae, images)


# What others say of the models


def _name_make(transformer: Mapping[str, Any]) -> str:
    """Return which model a transformer is of: `medium` of Stable Diffusion 3, `5-medium` or `5-large` of 3.5."""
    if not transformer.get("qk_norm"):
        return "medium"
    return "5-medium" if transformer.get("dual_attention_layers") else "5-large"


CARDS = {
    "medium": (28, 7.0, "stable-diffusion-3-medium-diffusers"),
    "5-medium": (40, 4.5, "stable-diffusion-3.5-medium"),
    "5-large": (28, 3.5, "stable-diffusion-3.5-large"),
    "5-large-turbo": (4, 0.0, "stable-diffusion-3.5-large-turbo"),
}
"""Model → steps, guidance and page of its model card."""
TRAINING = {"sample.steps": 10, "sampler.noise": "flow-sde", "sampler.eta": 0.7}
"""What Flow-GRPO (arXiv 2505.05470) trains the medium model of 3.5 with; it draws with the guidance of its card."""


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    """Return what Stability AI recommends.

    By its configurations, the turbo model is the large one: only names tell them apart. With a distilled LoRA, nothing
    is known but that guidance was mostly distilled with it.
    """
    if distilled_lora is not None:
        return Recommendation(FLOW.kind, FLOW.steps, guidance_scale=1.0)
    make = _name_make(configs.denoiser)
    names = [name, *(str(config.get("_name_or_path", "")) for config in (configs.index, configs.denoiser))]
    if make == "5-large" and any("turbo" in PurePath(one).name.lower() for one in names):
        make = "5-large-turbo"
    steps, guidance_scale, page = CARDS[make]
    # That of the published models; what was trained at another size states that.
    size = (1024, 1024) if configs.denoiser.get("sample_size") == LARGE["sample_size"] else None
    found = flow.recommend(steps, guidance_scale, image_size=size, source=f"https://huggingface.co/stabilityai/{page}")
    return found if make.endswith("turbo") else flow.train_base(found, TRAINING)


def _describe(pipeline: Any) -> tuple[str, dict[str, str]]:
    make = _name_make(pipeline.transformer.config)
    version = {"ss_base_model_version": make, "modelspec.architecture": f"stable-diffusion-3-{make}/lora"}
    return ("Stable Diffusion 3.5" if make.startswith("5") else "Stable Diffusion 3"), version


# A pipeline of published size with random weights


def _build() -> Any:
    import diffusers

    encoders = {f"{part}{suffix}": None for part in ("text_encoder", "tokenizer") for suffix in ("", "_2", "_3")}
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=diffusers.AutoencoderKL(**AUTOENCODER),
        transformer=diffusers.SD3Transformer2DModel(**LARGE),
        **encoders,
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import CLIPTextModelWithProjection

    return {
        "text_encoder": CLIPTextModelWithProjection(unet.build_text_config({**unet.CLIP_L, "projection_dim": 768})),
        "text_encoder_2": CLIPTextModelWithProjection(unet.build_text_config(CLIP_BIG_G)),
        T5: t5.build_encoder(),
    }


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    import torch

    config = model.denoiser.config
    return {
        f"{prefix}{name}": torch.randn(shape)
        for prefix in ("", "negative_")
        for name, shape in (
            ("prompt_embeds", (unet.TOKENS + TOKENS, config.joint_attention_dim)),
            ("pooled_prompt_embeds", (config.pooled_projection_dim,)),
        )
    }


LARGE_TURBO = Architecture(_build, _build_text_encoders, _recommend("turbo", Configs({}, LARGE, None), None))


FAMILY = Family(
    kind="stable-diffusion-3",
    title="Stable Diffusion 3 and 3.5",
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
            T5: "transformers",
            T5_TOKENIZER: "transformers",
        },
        find_fault=_find_fault,
        assemble=lambda configs: (PIPELINE, {}),
        check_fit=_check_fit,
        optional=(T5, T5_TOKENIZER),
    ),
    scheduling=Scheduling(
        default=(flow.SCHEDULER, {"shift": SHIFT}),
        check=flow.check_scheduler,
        overrides={},
        read_noise=_read_noise,
        choose_sampler=flow.choose_sampler,
        recommend=_recommend,
    ),
    guidance=Guidance(
        is_embedded=lambda settings: False, count_predictions=_count_predictions, recommend=lambda settings: 7.0
    ),
    latents=Latents(_own_size, _set_size, _latent_shape),
    text=TextEncoding(_encode, _count_cut, _stand_in, overflows_float16=True),
    # Unlike SDXL's, diffusers decodes it in float16 whatever its force_upcast says.
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: False),
    predict=_predict,
    lora_targets=LORA_TARGETS,
    names=ForeignNames(
        "lora_transformer",
        lambda name, config, names: name,
        _describe,
        single_file=("text_encoders.clip_g.",),
        kohya_in_diffusers=False,
    ),
    architectures={"sd35-large-turbo": LARGE_TURBO},
)
