"""What a U-Net is told beside latents and timestep: tables of tensors with a row a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlcm_cli.models.libraries import quiet_libraries

ENCODED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` of the pipelines gives, in its order; only SDXL's gives the last two."""


def is_sdxl(pipeline: Any) -> bool:
    """Whether a pipeline has the two text encoders, and so the added conditioning, of Stable Diffusion XL."""
    return hasattr(pipeline, "text_encoder_2")


def encode_prompt(pipeline: Any, prompt: str, device: torch.device) -> dict[str, Tensor]:
    """Encode one prompt as the pipeline does for its own `__call__`; tensors without a batch dimension.

    `prompt_embeds` [tokens, width]; `negative_prompt_embeds`, of the empty prompt, where guidance takes a second
    prediction; for SDXL also `pooled_prompt_embeds` [width 2] (and its negative) and `time_ids` [6].
    """
    with quiet_libraries():  # which print what they cut off a long prompt: see `count_cut_prompts`
        encoded = pipeline.encode_prompt(
            prompt,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=not pipeline.unet.config.time_cond_proj_dim,
        )
    rows = {name: tensor[0] for name, tensor in zip(ENCODED, encoded, strict=False) if tensor is not None}
    if is_sdxl(pipeline):
        # Original size, crop from the top left, target size (SDXL, arXiv 2307.01952, section 2.2).
        size = pipeline.default_sample_size * pipeline.vae_scale_factor
        rows["time_ids"] = torch.tensor([size, size, 0, 0, size, size])
    return rows


def count_cut_prompts(pipeline: Any, prompts: Iterable[str]) -> tuple[int, int]:
    """Return how many prompts are longer than the text encoder reads, and how many tokens that is."""
    longest = int(pipeline.tokenizer.model_max_length)
    # A token is a byte at least, and a text has two more: for its start and its end.
    suspects = [prompt for prompt in prompts if len(prompt.encode()) + 2 > longest]
    with quiet_libraries():
        lengths = [len(pipeline.tokenizer(prompt).input_ids) for prompt in suspects]
    return sum(length > longest for length in lengths), longest


def with_negative(conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the conditioning of a batch of 2B, first without the prompts, then with them, from tables of B rows."""
    positive = {name: table for name, table in conditioning.items() if not name.startswith("negative_")}
    return {name: torch.cat([conditioning.get(f"negative_{name}", table), table]) for name, table in positive.items()}


def unet_arguments(conditioning: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name the tables as `UNet2DConditionModel.forward` does."""
    arguments: dict[str, Any] = {"encoder_hidden_states": conditioning["prompt_embeds"]}
    if "time_ids" in conditioning:
        arguments["added_cond_kwargs"] = {
            "text_embeds": conditioning["pooled_prompt_embeds"],
            "time_ids": conditioning["time_ids"],
        }
    return arguments
