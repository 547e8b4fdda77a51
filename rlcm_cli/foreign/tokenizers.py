"""Tokenizers of transformers, which makes up an empty one where the vocabulary is missing."""

from __future__ import annotations

from typing import Any

from rlcm_cli.foreign.faults import ForeignError

KNOWN_WORDS = ("cat", "dog")
"""Every vocabulary that was made for English captions tells them apart."""


def check_vocabulary(tokenizer: Any) -> None:
    """Raise `ForeignError` where all words are the same to a tokenizer."""
    ids = [tuple(tokenizer(word)["input_ids"]) for word in KNOWN_WORDS]
    unknown = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    if len({*ids}) < len(KNOWN_WORDS) or any(not set(row) - unknown for row in ids):
        raise ForeignError(f"without a vocabulary: it does not tell {' from '.join(map(repr, KNOWN_WORDS))}")
