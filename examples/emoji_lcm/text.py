"""The small CLIP tokenizer and text encoder: prompts → embeddings [B, 24, 128]."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.emoji_lcm.subjects import all_captions

MAX_LENGTH = 24
WIDTH = 128
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(texts: Sequence[str] | None = None) -> CLIPTokenizer:
    """CLIP's byte-level BPE trained on `texts` (default: the captions); the byte alphabet lets any prompt through."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    empty = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])
    trained = Tokenizer(BPE(unk_token=END, end_of_word_suffix="</w>"))
    trained.normalizer = empty.backend_tokenizer.normalizer
    trained.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    trained.train_from_iterator(
        all_captions() if texts is None else texts,
        trainers.BpeTrainer(
            vocab_size=4096,
            min_frequency=1,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = _merges(trained)
    pieces = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(pair) for pair in merges)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, START, END]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build an untrained encoder of 0.5 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """Token ids int64 [B, 24], padded as the diffusers pipelines pad."""
    ids: torch.Tensor = tokenizer(
        list(prompts), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def encode(encoder: CLIPTextModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the prompt embeddings [B, 24, 128] that the pipelines use."""
    embeddings: torch.Tensor = encoder(ids)[0]
    return embeddings
