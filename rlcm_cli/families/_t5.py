"""Prompts read by T5's encoder (arXiv 1910.10683), as pipelines of diffusers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
"""As the configuration of google/t5-v1_1-xxl has it."""


def count_cut_prompts(tokenizer: Any, prompts: Sequence[str], longest: int) -> tuple[int, int]:
    """Return how many prompts have more than `longest` tokens, and how many that is."""
    # A token is a byte at least, and a text has two more: for its start and its end.
    suspects = [prompt for prompt in prompts if len(prompt.encode()) + 2 > longest]
    lengths = [len(tokenizer(prompt).input_ids) for prompt in suspects]
    return sum(length > longest for length in lengths), longest


def build_encoder() -> Any:
    """Make the encoder of T5 XXL with random weights."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**T5_XXL))
