"""Qwen-Image (arXiv 2508.02324), base and with the Lightning LoRA of four or eight steps."""

from __future__ import annotations

import re
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
from rlcm_cli.families import _flow as flow
from rlcm_cli.families import _language_models as language_models
from rlcm_cli.families import _qwen as qwen
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

DENOISER = "transformer"
TOKENS = 512
"""That a prompt has at most, its frame but for the part that is dropped included."""
NEGATIVE = " "
"""What stands in for a prompt that is left out, by the model card."""
PATCH = 2
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The projections of attention, of images and of texts."""
SHIFTED = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
"""How the noise levels are shifted, by the scheduler's published configuration: by the image's size."""
QWEN25_VL_7B = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
"""As its published configuration has it."""
LIGHTNING_SHIFT = 3.0
"""Of the noise levels at every size, by the card of the Lightning LoRA."""


def _recognise(index: Mapping[str, Any]) -> bool:
    return class_of(index, DENOISER) == "QwenImageTransformer2DModel" and class_of(index, "processor") is None


def _find_fault(configs: Configs) -> str | None:
    for key in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if configs.denoiser.get(key):
            return (
                f"is another make of Qwen-Image ({key} in transformer/config.json), which edits images or has layers"
            )
    return None


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    encoder, transformer, vae = parts["text_encoder"], parts[DENOISER].config, parts["vae"].config
    language_models.check_tokenizer(name, parts["tokenizer"], encoder, framed=False)
    language_models.check_width(name, encoder.config.get_text_config().hidden_size, transformer.joint_attention_dim)
    if vae.z_dim * PATCH**2 != transformer.in_channels:
        raise ModelError(
            f"{name}: its vae makes latents of {vae.z_dim} channels, and its transformer takes "
            f"{transformer.in_channels // PATCH**2}; use the vae that belongs to it"
        )
    if not len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim or min(vae.latents_std) <= 0:
        raise ModelError(
            f"{name}: latents_mean or latents_std in vae/config.json cannot scale latents of {vae.z_dim} channels; "
            "fix them"
        )


# The noise, and how it is taken out


def _read_noise(model: LoadedPipeline) -> Noise:
    def name_arguments(steps: int) -> dict[str, Any]:
        from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

        _, height, width = _latent_shape(model.pipeline, *model.image_size)
        shift = flow.read_shift(model.pipeline.scheduler.config)
        return {
            "sigmas": flow.list_even_sigmas(steps),
            "mu": calculate_shift((height // PATCH) * (width // PATCH), **shift),
        }

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
    """Predict as the pipeline does: a guided prediction of a token has the length of the one with the prompt.

    The mean of the next latents is still a function of what the transformer predicts, so the policy stays a Gaussian.
    """
    import torch

    batch, channels, height, width = latents.shape
    packed = model.pipeline._pack_latents(latents, batch, channels, height, width)

    def call(prefix: str) -> Tensor:
        embeds, mask = _trim(conditioning[f"{prefix}prompt_embeds"], conditioning[f"{prefix}prompt_mask"])
        output: Tensor = model.denoiser(
            hidden_states=packed,
            # Rounded where the pipeline rounds it.
            timestep=times.float().to(latents.dtype) / 1000,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // PATCH, width // PATCH)]] * batch,
            return_dict=False,
        )[0]
        return output

    output = call("")
    if _count_predictions({}, guidance_scale) == 2:
        negative = call("negative_")
        guided = negative + guidance_scale * (output - negative)
        output = guided * (output.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    unpacked = output.view(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return torch.permute(unpacked, (0, 3, 1, 4, 2, 5)).reshape(latents.shape)


def _trim(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut the texts of a batch to the longest, and leave the mask out where all have that length."""
    lengths = qwen.read_lengths(mask)
    longest = max(lengths)
    return embeds[:, :longest], None if min(lengths) == longest else mask[:, :longest]


# Texts


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt: `prompt_embeds` [tokens, width] and `prompt_mask` [tokens], and those of its stand-in."""

    def encode(text: str) -> Tensor:
        rows: Tensor = model.pipeline.encode_prompt(text, device=model.device, max_sequence_length=TOKENS)[0][0]
        return rows

    return {**qwen.name_text("", encode(prompt)), **qwen.name_text("negative_", encode(NEGATIVE))}


def _count_cut(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    frame, dropped = pipeline.prompt_template_encode.format, pipeline.prompt_template_encode_start_idx
    return language_models.count_cut_prompts(pipeline.tokenizer, frame, prompts, TOKENS + dropped)


# Sizes, and images


def _own_size(pipeline: Any) -> tuple[int, int]:
    side = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
    return side, side


def _set_size(pipeline: Any, height: int, width: int) -> None:
    flow.check_size(height, width, PATCH * int(pipeline.vae_scale_factor))


def _latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    scale = int(pipeline.vae_scale_factor)
    return int(pipeline.transformer.config.in_channels) // PATCH**2, height // scale, width // scale


def _read_statistics(vae: Any, beside: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, [1, C, 1, 1, 1] each, in the autoencoder's dtype."""
    mean, std = (
        beside.new_tensor(values, dtype=vae.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    """Decode a video of one frame, as the autoencoder is one of videos."""
    vae = model.pipeline.vae
    mean, std = _read_statistics(vae, latents)
    images: Tensor = vae.decode(latents.to(vae.dtype).unsqueeze(2) * std + mean, return_dict=False)[0][:, :, 0]
    return images


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    vae = model.pipeline.vae
    mean, std = _read_statistics(vae, images)
    latents: Tensor = vae.encode(images.to(vae.dtype).unsqueeze(2)).latent_dist.mode()
    return ((latents - mean) / std)[:, :, 0]


# What others say of the models


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    """Return what Qwen recommends, or lightx2v for its Lightning LoRA, whose file names say the number of steps."""
    size = (1328, 1328)
    if distilled_lora is None:
        return flow.recommend(50, 4.0, image_size=size, source="https://huggingface.co/Qwen/Qwen-Image")
    stated = re.search(r"(\d+)-?step", distilled_lora.lower())
    return flow.recommend(
        int(stated[1]) if stated else 8,
        1.0,
        image_size=size,
        source="https://huggingface.co/lightx2v/Qwen-Image-Lightning",
        shift=LIGHTNING_SHIFT,
    )


def _name_shift(pipeline: Any, guidance_scale: float) -> dict[str, str]:
    config = pipeline.scheduler.config
    return {} if config.use_dynamic_shifting else {"ModelSamplingAuraFlow": f"shift {config.shift:g}"}


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    return qwen.condition_freely(model.denoiser.config.joint_attention_dim)


# A pipeline of published size with random weights


def _build() -> Any:
    import diffusers

    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SHIFTED),
        vae=diffusers.AutoencoderKLQwenImage(),
        text_encoder=None,
        tokenizer=None,
        transformer=diffusers.QwenImageTransformer2DModel(),
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    return {"text_encoder": Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**QWEN25_VL_7B))}


WITH_LIGHTNING = Architecture(
    _build,
    _build_text_encoders,
    _recommend("", Configs({}, {}, None), "8steps"),
)


FAMILY = Family(
    kind="qwen-image",
    title="Qwen-Image",
    pipelines=("QwenImagePipeline",),
    denoiser=DENOISER,
    recognise=_recognise,
    loading=Loading(
        components={
            "transformer": "diffusers",
            "vae": "diffusers",
            "text_encoder": "transformers",
            "tokenizer": "transformers",
        },
        find_fault=_find_fault,
        assemble=lambda configs: ("QwenImagePipeline", {}),
        check_fit=_check_fit,
    ),
    scheduling=Scheduling(
        default=(flow.SCHEDULER, SHIFTED),
        check=flow.check_scheduler,
        overrides={},
        read_noise=_read_noise,
        choose_sampler=flow.choose_sampler,
        recommend=_recommend,
    ),
    guidance=Guidance(
        is_embedded=lambda settings: False,
        count_predictions=_count_predictions,
        recommend=lambda settings: 4.0,
        argument="true_cfg_scale",
        others={"negative_prompt": NEGATIVE},
    ),
    latents=Latents(_own_size, _set_size, _latent_shape),
    text=TextEncoding(_encode, _count_cut, _stand_in),
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: False),
    predict=_predict,
    lora_targets=LORA_TARGETS,
    names=ForeignNames(
        "lora_unet",
        lambda name, config, names: name,
        lambda pipeline: ("Qwen-Image", {}),
        prefixes=("diffusion_model.", ""),
        comfyui=_name_shift,
    ),
    architectures={"qwen-image": WITH_LIGHTNING},
)
