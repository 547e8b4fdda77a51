"""Language models as text encoders: what fits each other, and how many prompts they cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlcm_cli.errors import ModelError


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
