"""What SANA and SANA-Sprint share: a linear transformer, prompts read by Gemma 2, latents of 32 pixels a side."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from rlcm_cli.errors import ModelError
from rlcm_cli.families import Autoencoder, ForeignNames, Latents, LoadedPipeline, class_of
from rlcm_cli.families import _autoencoder as vae
from rlcm_cli.families import _flow as flow
from rlcm_cli.families import _language_models as language_models

if TYPE_CHECKING:
    from torch import Tensor

DENOISER = "transformer"
COMPONENTS = {
    "transformer": "diffusers",
    "vae": "diffusers",
    "text_encoder": "transformers",
    "tokenizer": "transformers",
}
SPRINT = "SanaSprint"
"""Beginning of the names of SANA-Sprint's pipelines."""
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of both attentions."""
HUB = "https://huggingface.co/Efficient-Large-Model/"
GUIDANCE = 4.5
TOKENS = 300
"""Of a prompt, which the transformer is conditioned on (arXiv 2410.10629, section 3.1)."""
UNIT = 32
"""Pixels that the pipelines of diffusers want the sides to be multiples of, whatever the autoencoder is."""


def has_transformer(index: Mapping[str, Any]) -> bool:
    """Return whether a pipeline, whose model_index.json this is, has SANA's denoiser."""
    return class_of(index, DENOISER) == "SanaTransformer2DModel"


def is_sprint(index: Mapping[str, Any]) -> bool:
    """Return whether a pipeline with SANA's denoiser is one of SANA-Sprint."""
    return str(index.get("_class_name")).startswith(SPRINT)


def is_guided_by_embedding(transformer: Mapping[str, Any]) -> bool:
    """Return whether a transformer of this configuration takes the guidance scale as an embedding."""
    return bool(transformer.get("guidance_embeds"))


# Pipelines of published sizes with random weights

SIZE_06B = {
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
SIZE_16B = {
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
AUTOENCODER_SETTINGS = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": BLOCKS,
    "decoder_block_types": BLOCKS,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3,) * 6,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "scaling_factor": 0.41407,
}
"""Of mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers."""
GEMMA_2_2B = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
PROMPT_TOKENS = 20
"""Of a prompt of usual length."""


def build_pipeline(kind: str, scheduler: tuple[str, Mapping[str, Any]], transformer: Mapping[str, Any]) -> Any:
    """Make a pipeline of a class, for images of 1024 pixels."""
    import diffusers

    class_name, settings = scheduler
    return getattr(diffusers, kind)(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderDC(**AUTOENCODER_SETTINGS),
        transformer=diffusers.SanaTransformer2DModel(
            **transformer, caption_channels=GEMMA_2_2B["hidden_size"], sample_size=1024 // UNIT
        ),
        scheduler=getattr(diffusers, class_name)(**settings),
    )


def build_text_encoders() -> dict[str, Any]:
    """Make the text encoder, Gemma 2 2B."""
    from transformers import Gemma2Config, Gemma2Model

    return {"text_encoder": Gemma2Model(Gemma2Config(**GEMMA_2_2B))}


def stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    """Return random tensors in the place of an encoded prompt, and where guidance needs it of the empty prompt."""
    import torch

    prefixes = ("",) if is_guided_by_embedding(model.denoiser.config) else ("", "negative_")
    width = model.denoiser.config.caption_channels
    return {
        **{f"{prefix}prompt_embeds": torch.randn(PROMPT_TOKENS, width) for prefix in prefixes},
        **{f"{prefix}prompt_attention_mask": torch.ones(PROMPT_TOKENS, dtype=torch.int64) for prefix in prefixes},
    }


# Components


def check_fit(name: str, parts: Mapping[str, Any]) -> None:
    """Raise `ModelError` where components do not fit each other, by their configurations."""
    transformer, encoder = parts[DENOISER].config, parts["text_encoder"]
    if hasattr(encoder, "lm_head"):
        raise ModelError(
            f"{name}: its text encoder, {type(encoder).__name__}, gives tokens and not what they mean; use the model "
            "without a head (Gemma2Model in model_index.json)"
        )
    language_models.check_tokenizer(name, parts["tokenizer"], encoder, framed=False)
    language_models.check_width(name, encoder.config.hidden_size, transformer.caption_channels)
    vae.check_autoencoder(name, parts["vae"].config, DENOISER, transformer.in_channels)
    if transformer.out_channels not in (None, transformer.in_channels):
        raise ModelError(
            f"{name}: its transformer takes {transformer.in_channels} channels and gives {transformer.out_channels}; "
            "use one that gives as many as it takes"
        )
    size = transformer.sample_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ModelError(
            f"{name}: sample_size of its transformer is {size!r}, not a number of latents above 0; fix its config"
        )


# Prompts


def read_instruction(kind: type) -> list[str]:
    """Return the instruction that a class of pipelines writes before a prompt unless told otherwise, in lines.

    It asks a language model to enhance the prompt. What it says of the instruction is cut off again, but for the first
    token and the last.
    """
    return list(inspect.signature(kind.__call__).parameters["complex_human_instruction"].default)


def name_text(prefix: str, embeds: Tensor, mask: Tensor, length: int) -> dict[str, Tensor]:
    """Return the first tokens of a text, [length, width], and of its mask, under names with a prefix."""
    return {f"{prefix}prompt_embeds": embeds[0, :length], f"{prefix}prompt_attention_mask": mask[0, :length]}


def count_tokens(mask: Tensor) -> int:
    """Return how many tokens a text of a mask [1, tokens] has: those after the last are padding, and are masked."""
    return int(mask[0].nonzero().max()) + 1


def count_cut_prompts(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    """Return how many prompts are longer than the transformer is conditioned on, and how many tokens that is."""
    instruction = "\n".join(read_instruction(type(pipeline)))
    longest = len(pipeline.tokenizer(instruction).input_ids) + TOKENS - 2
    return language_models.count_cut_prompts(
        pipeline.tokenizer, lambda prompt: instruction + prompt.lower().strip(), prompts, longest
    )


# Prediction


def call_transformer(
    model: LoadedPipeline, latents: Tensor, times: Tensor, conditioning: Mapping[str, Tensor], **settings: Any
) -> Tensor:
    """Return the output [B, C, h, w] of the transformer."""
    output = model.denoiser(
        latents,
        encoder_hidden_states=conditioning["prompt_embeds"],
        encoder_attention_mask=conditioning["prompt_attention_mask"],
        timestep=times,
        return_dict=False,
        **settings,
    )[0]
    return cast("Tensor", output)


# Sizes, images and names


def _own_size(pipeline: Any) -> tuple[int, int]:
    side = int(pipeline.transformer.config.sample_size * pipeline.vae_scale_factor)
    return side, side


def _set_size(pipeline: Any, height: int, width: int) -> None:
    unit = math.lcm(UNIT, int(pipeline.vae_scale_factor * pipeline.transformer.config.patch_size))
    flow.check_size(height, width, unit)


def _latent_shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    scale = int(pipeline.vae_scale_factor)
    return int(pipeline.transformer.config.in_channels), height // scale, width // scale


def _name_arguments(model: LoadedPipeline) -> dict[str, Any]:
    height, width = model.image_size
    # With binning, an image of the nearest of some sizes is drawn, and then resized.
    return {"height": height, "width": width, "use_resolution_binning": False}


LATENTS = Latents(_own_size, _set_size, _latent_shape, arguments=_name_arguments)
AUTOENCODER = Autoencoder(
    decode=lambda model, latents: vae.decode(model.pipeline.vae, latents),
    encode=lambda model, images: vae.encode(model.pipeline.vae, images),
    # Its makers decode in bfloat16 or float32 where the transformer is in float16.
    needs_float32=lambda config: True,
)
NAMES = ForeignNames(
    kohya="lora_transformer",
    spell=lambda name, config, names: name,
    describe=lambda pipeline: None,
    # ComfyUI knows no SANA, and diffusers reads LoRAs of it under its own names only.
    stack=lambda layers: {},
)
