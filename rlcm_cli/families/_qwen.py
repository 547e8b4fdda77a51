"""Prompts read by the language models of Qwen, as pipelines of diffusers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
"""As its published configuration has it."""
USUAL_TOKENS = 64
"""Of a prompt in its frame, where texts have lengths of their own."""


def name_text(prefix: str, embeds: Tensor) -> dict[str, Tensor]:
    """Return the vectors of a text [tokens, width] and their mask [tokens], under names with a prefix."""
    import torch

    mask = torch.ones(len(embeds), dtype=torch.bool, device=embeds.device)
    return {f"{prefix}prompt_embeds": embeds, f"{prefix}prompt_mask": mask}


def read_lengths(mask: Tensor) -> list[int]:
    """Return how many tokens each text of a mask [B, tokens] has; one without values, on the meta device, is full."""
    if mask.is_meta:
        return [mask.shape[1]] * len(mask)
    lengths: list[int] = mask.sum(1).tolist()
    return lengths


def condition_freely(width: int) -> dict[str, Tensor]:
    """Return random numbers in the place of a prompt and its stand-in, of usual length and a width."""
    import torch

    rows: dict[str, Tensor] = {}
    for prefix in ("", "negative_"):
        rows |= name_text(prefix, torch.randn(USUAL_TOKENS, width))
    return rows
