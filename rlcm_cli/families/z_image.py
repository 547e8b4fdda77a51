"""Z-Image (arXiv 2511.22699): Z-Image-Turbo, distilled to eight steps, and Z-Image."""

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
from rlcm_cli.families import _autoencoder as vae
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
TOKENS = 512
"""That a prompt has at most."""
OWN_SIZE = 1024
"""Pixels of a side where `ZImagePipeline` is asked for no size."""
PATCH = 2
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of attention, those of the two refiners too."""
AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""As its published configuration has it: that of FLUX.1."""
BLOCKS = r"((?:layers|noise_refiner|context_refiner)\.\d+)"
NATIVE_NAMES = (
    *((rf"{BLOCKS}\.attention\.to_{one}", r"\1.attention.qkv") for one in "qkv"),
    (rf"{BLOCKS}\.attention\.to_out\.0", r"\1.attention.out"),
    (rf"{BLOCKS}\.(feed_forward\.w[123]|adaLN_modulation\.0)", r"\1.\2"),
    (r"(cap_embedder\.1|t_embedder\.mlp\.[02])", r"\1"),
)
"""Layers here → in Z-Image's own code, whose names ComfyUI has."""
TURBO_SHIFT = 3.0
"""Of the noise levels, by which Z-Image-Turbo's scheduler is told from that of Z-Image, which has 6."""


def _recognise(index: Mapping[str, Any]) -> bool:
    return class_of(index, DENOISER) == "ZImageTransformer2DModel" and class_of(index, "siglip") is None


def _find_fault(configs: Configs) -> str | None:
    if configs.denoiser.get("siglip_feat_dim") is not None:
        return "is conditioned on images too (siglip_feat_dim)"
    return None


def _check_fit(name: str, parts: Mapping[str, Any]) -> None:
    encoder, transformer = parts["text_encoder"].config, parts[DENOISER].config
    language_models.check_tokenizer(name, parts["tokenizer"], parts["text_encoder"], framed=True)
    language_models.check_width(name, encoder.hidden_size, transformer.cap_feat_dim)
    vae.check_autoencoder(name, parts["vae"].config, DENOISER, transformer.in_channels)
    if PATCH not in transformer.all_patch_size or 1 not in transformer.all_f_patch_size:
        raise ModelError(
            f"{name}: its transformer has no patches of {PATCH} x {PATCH} latents, which ZImagePipeline feeds it; use "
            "the transformer that belongs to it"
        )


# The noise, and how it is taken out


def _read_noise(model: LoadedPipeline) -> Noise:
    def name_arguments(steps: int) -> dict[str, Any]:
        from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas

        _, height, width = _latent_shape(model.pipeline, *model.image_size)
        shift = flow.read_shift(model.pipeline.scheduler.config)
        return {
            "sigmas": get_default_z_image_sigmas(steps),
            "mu": calculate_shift((height // PATCH) * (width // PATCH), **shift),
        }

    return flow.read_noise(model, name_arguments)


def _count_predictions(settings: Mapping[str, Any], guidance_scale: float) -> int:
    return 1 + (guidance_scale > 0)


def _predict(
    model: LoadedPipeline,
    latents: Tensor,
    times: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    """Predict as the pipeline does, without its cfg_normalization and cfg_truncation, which are off by default there.

    Its scale g counts from 0: v(c) + g · (v(c) − v(∅)). The transformer predicts −v, and its time rises from 0.
    """
    import torch

    fed, texts, times = latents.unsqueeze(2), _split(conditioning, ""), (1000 - times.float()) / 1000
    guided = _count_predictions({}, guidance_scale) == 2
    if guided:
        fed, texts, times = fed.repeat(2, 1, 1, 1, 1), texts + _split(conditioning, "negative_"), times.repeat(2)
    outputs = torch.stack(model.denoiser(list(fed), times, texts, return_dict=False)[0]).squeeze(2).float()
    if guided:
        positive, negative = outputs.chunk(2)
        outputs = positive + guidance_scale * (positive - negative)
    return -outputs


def _split(conditioning: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """Return the texts of a batch, each as long as it is."""
    lengths = qwen.read_lengths(conditioning[f"{prefix}prompt_mask"])
    return [row[:length] for row, length in zip(conditioning[f"{prefix}prompt_embeds"], lengths, strict=True)]


# Texts


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt: `prompt_embeds` [tokens, width] and `prompt_mask` [tokens], and those of the empty prompt."""
    positive, negative = model.pipeline.encode_prompt(
        prompt, device=model.device, do_classifier_free_guidance=True, max_sequence_length=TOKENS
    )
    return {
        **qwen.name_text("", positive[0]),
        **qwen.name_text("negative_", negative[0]),
    }


def _count_cut(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    def frame(prompt: str) -> str:
        text: str = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return text

    return language_models.count_cut_prompts(pipeline.tokenizer, frame, prompts, TOKENS)


# Sizes, and images


def _set_size(pipeline: Any, height: int, width: int) -> None:
    unit = PATCH * int(pipeline.vae_scale_factor)
    flow.check_size(height, width, unit)
    _, rows, columns = pipeline.transformer.config.axes_lens
    if height > rows * unit or width > columns * unit:
        raise ModelError(
            f"images of {width} x {height} pixels: this model's are at most {columns * unit} wide and {rows * unit} "
            "high; choose a smaller size"
        )


def _latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    scale = int(pipeline.vae_scale_factor)
    return int(pipeline.transformer.config.in_channels), height // scale, width // scale


def _decode(model: LoadedPipeline, latents: Tensor) -> Tensor:
    return vae.decode(model.pipeline.vae, latents)


def _encode_images(model: LoadedPipeline, images: Tensor) -> Tensor:
    return vae.encode(model.pipeline.vae, images)


# What others say of the models


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    """Return what Tongyi-MAI recommends; its "9 steps" of Turbo made 8 model calls in diffusers before 0.42."""
    turbo = (configs.scheduler or {}).get("shift") == TURBO_SHIFT
    return flow.recommend(
        *((8, 0.0) if turbo or distilled_lora else (50, 4.0)),
        image_size=(OWN_SIZE, OWN_SIZE),
        source=f"https://huggingface.co/Tongyi-MAI/Z-Image{'-Turbo' * turbo}",
    )


def _name_nodes(pipeline: Any, guidance_scale: float) -> dict[str, str]:
    """Return ComfyUI's nodes: its guidance is v(∅) + cfg · (v(c) − v(∅))."""
    return {"ModelSamplingAuraFlow": f"shift {pipeline.scheduler.config.shift:g}", "cfg": f"{1 + guidance_scale:g}"}


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    return qwen.condition_freely(model.denoiser.config.cap_feat_dim)


# A pipeline of published size with random weights


def _build() -> Any:
    import diffusers

    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=TURBO_SHIFT),
        vae=diffusers.AutoencoderKL(**AUTOENCODER),
        text_encoder=None,
        tokenizer=None,
        transformer=diffusers.ZImageTransformer2DModel(),
    )


def _build_text_encoders() -> dict[str, Any]:
    from transformers import Qwen3Config, Qwen3Model

    return {"text_encoder": Qwen3Model(Qwen3Config(**qwen.QWEN3_4B))}


TURBO = Architecture(
    _build,
    _build_text_encoders,
    _recommend("", Configs({}, {}, {"shift": TURBO_SHIFT}), None),
)


FAMILY = Family(
    kind="z-image",
    title="Z-Image",
    pipelines=("ZImagePipeline",),
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
        assemble=lambda configs: ("ZImagePipeline", {}),
        check_fit=_check_fit,
    ),
    scheduling=Scheduling(
        default=(flow.SCHEDULER, {"shift": TURBO_SHIFT}),
        check=flow.check_scheduler,
        overrides={},
        read_noise=_read_noise,
        choose_sampler=flow.choose_sampler,
        recommend=_recommend,
    ),
    guidance=Guidance(
        is_embedded=lambda settings: False, count_predictions=_count_predictions, recommend=lambda settings: 0.0
    ),
    latents=Latents(lambda pipeline: (OWN_SIZE, OWN_SIZE), _set_size, _latent_shape),
    text=TextEncoding(_encode, _count_cut, _stand_in),
    autoencoder=Autoencoder(_decode, _encode_images, needs_float32=lambda config: False),
    predict=_predict,
    lora_targets=LORA_TARGETS,
    names=ForeignNames(
        "lora_unet",
        lambda name, config, names: name,
        lambda pipeline: ("Z-Image", {}),
        stack=partial(names.stack_layers, NATIVE_NAMES),
        prefixes=("diffusion_model.", ""),
        comfyui=_name_nodes,
    ),
    architectures={"z-image-turbo": TURBO},
)
