"""Prompts read by the language models of Qwen, as pipelines of diffusers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError

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


def check_tokenizer(name: str, tokenizer: Any, encoder: Any, *, framed: bool) -> None:
    """Raise `ModelError` unless a pipeline's tokenizer belongs to its text encoder, and can frame a prompt.

    `framed`: whether the pipeline asks the tokenizer for its chat template.
    """
    config = encoder.config.get_text_config()
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{name}: its tokenizer has {len(tokenizer):,} tokens, and its text encoder knows {config.vocab_size:,}; "
            "use the tokenizer that belongs to it"
        )
    if framed and not tokenizer.chat_template:
        raise ModelError(
            f"{name}: its tokenizer has no chat template, which prompts are put into; get tokenizer/"
            "chat_template.jinja, or tokenizer/tokenizer_config.json with one"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no pad_token, which prompts are filled up with; set one")


def check_width(name: str, given: int, taken: int) -> None:
    """Raise `ModelError` unless a text encoder gives vectors of the width that a transformer takes."""
    if given != taken:
        raise ModelError(
            f"{name}: its text encoder gives vectors of {given} numbers, and its transformer takes {taken}; use the "
            "text encoder that belongs to it"
        )


def count_cut_prompts(
    tokenizer: Any, frame: Callable[[str], str], prompts: Sequence[str], longest: int
) -> tuple[int, int]:
    """Return how many prompts have more than `longest` tokens in their frame, and how many tokens that leaves them.

    `frame`: prompt → the text that is encoded.
    """
    around = len(tokenizer(frame("")).input_ids)
    # A token is a byte at least.
    suspects = [prompt for prompt in prompts if len(prompt.encode()) + around > longest]
    lengths = [len(tokenizer(frame(prompt)).input_ids) for prompt in suspects]
    return sum(length > longest for length in lengths), max(longest - around, 0)


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
