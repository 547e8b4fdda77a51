"""The two diffusers pipelines of the recipe: their parts, how they are put together, called and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import Gemma2Model, GemmaTokenizer

from examples.emoji_lcm.paths import replace_folder
from examples.emoji_lcm.pipelines import write_float16
from examples.emoji_sprint.text import LONGEST, WIDTH

FLOAT16_BITS, KEPT_BITS = 10, 8
"""Of the fraction of a weight. The last two are noise that a wheel cannot compress: without them it is an eighth
smaller."""
SECOND_ANGLE = 1.3
"""Of two steps, as SanaSprintPipeline has it by default; it refuses it with other numbers of steps."""


def new_transformer(
    *, channels: int, size: int, guidance_embedding: bool, width: int = 256, depth: int = 8
) -> SanaTransformer2DModel:
    """Build an untrained transformer for latents [B, channels, size, size], by default of 8.9 M parameters.

    With `timestep_scale` 0.001 SanaPipeline, too, tells it the noise level in 0–1, as SanaSprintPipeline does:
    teacher and student have the same model time, and so the same embedding of it.
    """
    model = SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_layers=depth,
        num_cross_attention_heads=width // 32,
        cross_attention_head_dim=32,
        cross_attention_dim=width,
        caption_channels=WIDTH,
        mlp_ratio=2.5,
        sample_size=size,
        # With one, places have sine and cosine embeddings: there are too few for convolutions to tell them apart.
        interpolation_scale=1.0,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=guidance_embedding,
        timestep_scale=0.001,
    )
    with torch.no_grad():
        embedder = model.time_embed.timestep_embedder if guidance_embedding else model.time_embed.emb.timestep_embedder
        # Over 0–1, the sines and cosines of the time change little.
        embedder.linear_1.weight.mul_(4)
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
    return model


def new_teacher_pipeline(
    vae: AutoencoderDC, encoder: Gemma2Model, tokenizer: GemmaTokenizer, transformer: SanaTransformer2DModel
) -> SanaPipeline:
    """Put the teacher together."""
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def new_student_pipeline(
    vae: AutoencoderDC, encoder: Gemma2Model, tokenizer: GemmaTokenizer, transformer: SanaTransformer2DModel
) -> SanaSprintPipeline:
    """Put the student together."""
    return SanaSprintPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae, transformer=transformer, scheduler=SCMScheduler()
    )


def at_own_size(pipe: Any) -> Callable[..., Any]:
    """Return a pipeline as a function of prompts, steps, guidance and generators, with what a small model needs else.

    The pipelines are made for 1024 pixels: they are told the size, and not to look for a similar one in their table.
    """
    side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    sprint = isinstance(pipe, SanaSprintPipeline)

    def call(*, num_inference_steps: int, **arguments: Any) -> Any:
        if sprint:
            arguments["intermediate_timesteps"] = SECOND_ANGLE if num_inference_steps == 2 else None
        return pipe(
            num_inference_steps=num_inference_steps,
            height=side,
            width=side,
            use_resolution_binning=False,
            max_sequence_length=LONGEST,
            **arguments,
        )

    return call


def save_pipeline(pipe: SanaPipeline | SanaSprintPipeline, folder: Path) -> None:
    """Write a pipeline's folder in float16, of `KEPT_BITS`. The pipeline's own parts become so."""
    for part in (pipe.transformer, pipe.vae):
        round_weights(part)
    replace_folder(folder, lambda fresh: write_float16(pipe, fresh, denoiser="transformer"))


@torch.no_grad()
def round_weights(module: torch.nn.Module) -> None:
    """Make a module float16, its weights rounded to the nearest number whose last bits are 0."""
    low = 1 << (FLOAT16_BITS - KEPT_BITS)
    for parameter in module.half().parameters():
        bits = parameter.view(torch.int16)
        # Sign and magnitude: what is added to the bits makes a number larger in size, whichever its sign.
        bits.add_(low // 2).bitwise_and_(-low)
