"""FLUX.2 [klein], of 4 and 9 billion weights, distilled to four steps and base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
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
from rlcm_cli.families import _names as names
from rlcm_cli.families import _qwen as qwen
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

DENOISER = "transformer"
DISTILLED = "is_distilled"
TOKENS = 512
"""Of every prompt, shorter ones being filled up; the transformer sees what fills them."""
LAYERS = (9, 18, 27)
"""Of the text encoder: those whose outputs the transformer takes side by side."""
SHIFTED = {"shift": 3.0, "use_dynamic_shifting": True}
"""How the noise levels are shifted, by the scheduler's published configuration: by the image's size."""
LORA_TARGETS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
    "to_qkv_mlp_proj",
)
"""Attention in the blocks with two streams and, fused with the way into their MLP, in those with one."""
BFL_NAMES = (
    *((rf"transformer_blocks\.(\d+)\.attn\.to_{one}", r"double_blocks.\1.img_attn.qkv") for one in "qkv"),
    *((rf"transformer_blocks\.(\d+)\.attn\.add_{one}_proj", r"double_blocks.\1.txt_attn.qkv") for one in "qkv"),
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_in", r"double_blocks.\1.img_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff\.linear_out", r"double_blocks.\1.img_mlp.2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_in", r"double_blocks.\1.txt_mlp.0"),
    (r"transformer_blocks\.(\d+)\.ff_context\.linear_out", r"double_blocks.\1.txt_mlp.2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
    (r"single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    (r"time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    ("proj_out", "final_layer.linear"),
)
"""Layers here → in Black Forest Labs' code, whose names ComfyUI and kohya's files have."""


def _recognise(index: Mapping[str, Any]) -> bool:
    parts = class_of(index, DENOISER), class_of(index, "text_encoder")
    return parts == ("Flux2Transformer2DModel", "Qwen3ForCausalLM")


def _find_fault(configs: Configs) -> str | None:
    if configs.denoiser.get("guidance_embeds", True):
        return "takes its guidance as a number (guidance_embeds), which Flux2KleinPipeline does not give it"
    return None


def _assemble(configs: Configs) -> tuple[str, dict[str, Any]]:
    return "Flux2KleinPipeline", {DISTILLED: _is_distilled(configs.index)}


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    encoder, transformer, vae = parts["text_encoder"].config, parts[DENOISER].config, parts["vae"].config
    language_models.check_tokenizer(name, parts["tokenizer"], parts["text_encoder"], framed=True)
    language_models.check_width(name, len(LAYERS) * encoder.hidden_size, transformer.joint_attention_dim)
    if encoder.num_hidden_layers < LAYERS[-1]:
        raise ModelError(
            f"{name}: its text encoder has {encoder.num_hidden_layers} layers, and the outputs of layers "
            f"{', '.join(map(str, LAYERS))} are needed; use the text encoder that belongs to it"
        )
    made = vae.latent_channels * vae.patch_size[0] * vae.patch_size[1]
    if made != transformer.in_channels:
        raise ModelError(
            f"{name}: its vae makes latents of {made} channels, and its transformer takes {transformer.in_channels}; "
            "use the vae that belongs to it"
        )


# The noise, and how it is taken out


def _read_noise(model: LoadedPipeline) -> Noise:
    def name_arguments(steps: int) -> dict[str, Any]:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        _, height, width = _latent_shape(model.pipeline, *model.image_size)
        return {
            "sigmas": flow.list_even_sigmas(steps),
            "mu": compute_empirical_mu(image_seq_len=height * width, num_steps=steps),
        }

    return flow.read_noise(model, name_arguments)


def _is_distilled(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get(DISTILLED))


def _count_predictions(settings: Mapping[str, Any], guidance_scale: float) -> int:
    return 1 + (guidance_scale > 1 and not _is_distilled(settings))


def _predict(
    model: LoadedPipeline,
    latents: Tensor,
    times: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    packed = latents.flatten(2).transpose(1, 2)
    positions = _list_positions(model, latents, conditioning["prompt_embeds"])

    def call(embeds: Tensor) -> Tensor:
        output: Tensor = model.denoiser(
            hidden_states=packed,
            # Rounded where the pipeline rounds it.
            timestep=times.float().to(latents.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=embeds,
            return_dict=False,
            **positions,
        )[0]
        return output

    output = call(conditioning["prompt_embeds"])
    if _count_predictions(model.pipeline.config, guidance_scale) == 2:
        negative = call(conditioning["negative_prompt_embeds"])
        output = negative + guidance_scale * (output - negative)
    return output.transpose(1, 2).reshape(latents.shape)


def _list_positions(model: LoadedPipeline, latents: Tensor, embeds: Tensor) -> dict[str, Tensor]:
    """Return where the tokens of latents and of a text are, four whole numbers each."""
    keys = {"img_ids": ("image", *latents.shape[2:]), "txt_ids": ("text", embeds.shape[1])}
    if any(key not in model.kept for key in keys.values()):
        pipeline = model.pipeline
        model.kept[keys["img_ids"]] = pipeline._prepare_latent_ids(latents[:1]).to(model.device)
        model.kept[keys["txt_ids"]] = pipeline._prepare_text_ids(embeds[:1]).to(model.device)
    return {name: model.kept[key] for name, key in keys.items()}


# Texts


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt: `prompt_embeds` [512, 3 × width], and those of the empty prompt where guidance needs them."""

    def encode(text: str) -> Tensor:
        rows: Tensor = model.pipeline.encode_prompt(text, device=model.device, max_sequence_length=TOKENS)[0][0]
        return rows

    if _is_distilled(model.pipeline.config):
        return {"prompt_embeds": encode(prompt)}
    return {"prompt_embeds": encode(prompt), "negative_prompt_embeds": encode("")}


def _count_cut(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    def frame(prompt: str) -> str:
        text: str = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text

    return language_models.count_cut_prompts(pipeline.tokenizer, frame, prompts, TOKENS)


# Sizes, and images


def _own_size(pipeline: Any) -> tuple[int, int]:
    side = int(pipeline.default_sample_size * pipeline.vae_scale_factor)
    return side, side


def _set_size(pipeline: Any, height: int, width: int) -> None:
    flow.check_size(height, width, 2 * int(pipeline.vae_scale_factor))


def _latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    scale = 2 * int(pipeline.vae_scale_factor)
    return int(pipeline.transformer.config.in_channels), height // scale, width // scale


def _read_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, [1, C, 1, 1] each, in the autoencoder's dtype."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    return mean.to(vae.dtype), std.to(vae.dtype)


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    vae = model.pipeline.vae
    mean, std = _read_statistics(vae)
    images: Tensor = vae.decode(
        model.pipeline._unpatchify_latents(latents.to(vae.dtype) * std + mean), return_dict=False
    )[0]
    return images


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    vae = model.pipeline.vae
    mean, std = _read_statistics(vae)
    latents: Tensor = model.pipeline._patchify_latents(vae.encode(images.to(vae.dtype)).latent_dist.mode())
    return (latents - mean) / std


# What others say of the models


def _describe(pipeline: Any) -> tuple[str, dict[str, str]]:
    return f"FLUX.2 klein {_name_size(pipeline.transformer.config)}", {}


def _name_size(transformer: Mapping[str, Any]) -> str:
    return "9B" if transformer.get("num_attention_heads") == 32 else "4B"


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    """Return what Black Forest Labs recommends; training adds the noise of RTDMD (arXiv 2605.26108), η 0.9."""
    size, distilled = _name_size(configs.denoiser), _is_distilled(configs.index)
    return flow.recommend(
        *((4, 1.0) if distilled else (50, 4.0)),
        image_size=(1024, 1024),
        source=f"https://huggingface.co/black-forest-labs/FLUX.2-klein-{'' if distilled else 'base-'}{size}",
    )


# A pipeline of published size with random weights


def _build() -> Any:
    import diffusers

    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SHIFTED),
        vae=diffusers.AutoencoderKLFlux2(),
        text_encoder=None,
        tokenizer=None,
        transformer=diffusers.Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=len(LAYERS) * qwen.QWEN3_4B["hidden_size"],
            guidance_embeds=False,
        ),
        is_distilled=True,
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return {"text_encoder": Qwen3ForCausalLM(Qwen3Config(**qwen.QWEN3_4B))}


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    import torch

    prefixes = ("",) if _is_distilled(model.pipeline.config) else ("", "negative_")
    width = model.denoiser.config.joint_attention_dim
    return {f"{prefix}prompt_embeds": torch.randn(TOKENS, width) for prefix in prefixes}


KLEIN_4B = Architecture(
    _build,
    _build_text_encoders,
    _recommend("", Configs({DISTILLED: True}, {}, None), None),
)


FAMILY = Family(
    kind="flux2-klein",
    title="FLUX.2 klein",
    pipelines=("Flux2KleinPipeline",),
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
        assemble=_assemble,
        check_fit=_check_fit,
        settings=(DISTILLED,),
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
        is_embedded=_is_distilled,
        count_predictions=_count_predictions,
        recommend=lambda settings: 1.0 if _is_distilled(settings) else 4.0,
    ),
    latents=Latents(_own_size, _set_size, _latent_shape),
    text=TextEncoding(_encode, _count_cut, _stand_in),
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: False),
    predict=_predict,
    lora_targets=LORA_TARGETS,
    names=ForeignNames(
        "lora_unet",
        lambda name, config, names: name,
        _describe,
        stack=partial(names.stack_layers, BFL_NAMES),
        prefixes=("diffusion_model.",),
        # Whose levels are those of the pipeline.
        comfyui=lambda pipeline, guidance_scale: {"scheduler": "the node Flux2Scheduler, with the size and the steps"},
    ),
    architectures={"flux2-klein-4b": KLEIN_4B},
)
