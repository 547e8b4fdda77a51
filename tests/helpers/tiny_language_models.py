"""Tokenizers and language models of Qwen, tiny, with random weights, as text encoders of pipelines have them."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
"""As Qwen3's: without thinking, the thoughts are there and empty."""
CORPUS = ("a photo of a cat", "a dog on blue", "system user assistant think", "Describe the image by its colour")


@functools.cache
def build_tokenizer() -> Qwen2TokenizerFast:
    """Train a byte-level BPE of a few hundred tokens, with Qwen's special tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[PAD, START, END]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=4096,
        chat_template=TEMPLATE,
    )


def _text_settings(layers: int, width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }


def build_qwen3(*, layers: int, width: int, head: bool) -> Qwen3Model | Qwen3ForCausalLM:
    """Build a Qwen3, with a head for the next token or without."""
    kind = Qwen3ForCausalLM if head else Qwen3Model
    return kind(Qwen3Config(**_text_settings(layers, width), head_dim=width // 2))


def build_qwen25_vl(*, layers: int, width: int) -> Qwen2_5_VLForConditionalGeneration:
    """Build a Qwen2.5-VL, with a tower for images that no prompt uses."""
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                **_text_settings(layers, width),
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_heads": 2,
                "out_hidden_size": width,
                "fullatt_block_indexes": [0],
            },
            tie_word_embeddings=True,
        )
    )
