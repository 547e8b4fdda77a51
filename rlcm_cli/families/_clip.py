"""Prompts read by CLIP's text encoders, as the pipelines of Stable Diffusion do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError
from rlcm_cli.foreign.tokenizers import KNOWN_WORDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ENCODED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` of the pipelines returns, in its order; only SDXL's returns the last two."""
LEGACY_END = 2
"""End-of-text id in the configurations of old CLIP text encoders, for which transformers takes the largest id."""


def encode_prompt(pipeline: Any, prompt: str, device: torch.device, *, guided_twice: bool) -> dict[str, Tensor]:
    """Encode one prompt as the pipeline does for its own `__call__`; tensors without a batch dimension.

    `prompt_embeds` [tokens, width]; `negative_prompt_embeds`, of the empty prompt, where guidance takes a second
    prediction; for SDXL also `pooled_prompt_embeds` [width 2] (and its negative).
    """
    encoded = pipeline.encode_prompt(
        prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided_twice
    )
    return {name: tensor[0] for name, tensor in zip(ENCODED, encoded, strict=False) if tensor is not None}


def count_cut_prompts(pipeline: Any, prompts: list[str]) -> tuple[int, int]:
    """Return how many prompts are longer than the text encoder reads, and how many tokens that is."""
    longest = int(pipeline.tokenizer.model_max_length)
    # A token is a byte at least, and a text has two more: for its start and its end.
    suspects = [prompt for prompt in prompts if len(prompt.encode()) + 2 > longest]
    lengths = [len(pipeline.tokenizer(prompt).input_ids) for prompt in suspects]
    return sum(length > longest for length in lengths), longest


def with_negative(conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the conditioning of a batch of 2B, first without the prompts, then with them, from tables of B rows."""
    import torch

    positive = {name: table for name, table in conditioning.items() if not name.startswith("negative_")}
    return {name: torch.cat([conditioning.get(f"negative_{name}", table), table]) for name, table in positive.items()}


def check_tokens(name: str, tokenizer: Any, encoder: Any, part: str) -> None:
    """Raise `ModelError` unless a tokenizer, the pipeline's `part`, belongs to a text encoder."""
    config = encoder.config
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{name}: its {part} has {len(tokenizer):,} tokens, and its text encoder knows {config.vocab_size:,}; use "
            "the tokenizer that belongs to it"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokenizer.model_max_length > longest:
        raise ModelError(
            f"{name}: its {part} cuts prompts to {tokenizer.model_max_length} tokens, and its text encoder takes "
            f"{longest}; set model_max_length in {part}/tokenizer_config.json"
        )
    end = getattr(config, "eos_token_id", None)
    pools = hasattr(encoder, "text_projection")
    if pools and end != LEGACY_END and end not in tokenizer(KNOWN_WORDS[0])["input_ids"]:
        raise ModelError(
            f"{name}: its {part} never ends a prompt with the token {end}, at which its text encoder reads the whole "
            "prompt (eos_token_id); use the tokenizer that belongs to it"
        )
