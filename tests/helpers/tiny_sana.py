"""SANA and SANA-Sprint, tiny, with random weights: real classes, and a tokenizer like Gemma's, saved as on the hub."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from rlcm_cli.families._sana import read_instruction

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
"""With Gemma's ids 0 to 3."""
PROMPTS = ("a photo of a cat", "a dog on blue", "a red car", "a house", "a dog on green")


@functools.cache
def build_gemma_tokenizer() -> GemmaTokenizer:
    """Train a BPE of a few hundred tokens, with byte fallback, on SANA's instruction and some prompts.

    It begins a text with `<bos>`, fills up at the left and knows no longest text, as the published one.
    """
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token=SPECIAL[3]))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=[*SPECIAL, *in_bytes], show_progress=False)
    trained.train_from_iterator([*read_instruction(SanaPipeline), *PROMPTS * 20], trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def build_gemma(*, width: int) -> Gemma2Model:
    """Build a Gemma 2 of two layers, one that slides over the text and one that does not."""
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(build_gemma_tokenizer()),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=width // 2,
            sliding_window=64,
        )
    )


def build_autoencoder() -> AutoencoderDC:
    """Build an autoencoder of 8 pixels a side, with both kinds of blocks."""
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(4, 4, 8, 8),
        decoder_block_out_channels=(4, 4, 8, 8),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )


def build_transformer(**settings: Any) -> SanaTransformer2DModel:
    """Build a linear transformer of two blocks, for texts of 16 numbers a token and images of 32 pixels."""
    return SanaTransformer2DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 4,
            "qk_norm": "rms_norm_across_heads",
            **settings,
        }
    )


def build_sana_sprint(folder: Path, **settings: Any) -> Path:
    """Save SANA-Sprint's make."""
    torch.manual_seed(11)
    SanaSprintPipeline(
        tokenizer=build_gemma_tokenizer(),
        text_encoder=build_gemma(width=16),
        vae=build_autoencoder(),
        transformer=build_transformer(guidance_embeds=True, **settings),
        scheduler=SCMScheduler(),
    ).save_pretrained(folder)
    return folder


def build_sana(folder: Path, **settings: Any) -> Path:
    """Save SANA's make, with the solver that it is published with."""
    torch.manual_seed(12)
    SanaPipeline(
        tokenizer=build_gemma_tokenizer(),
        text_encoder=build_gemma(width=16),
        vae=build_autoencoder(),
        transformer=build_transformer(**settings),
        scheduler=DPMSolverMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
    ).save_pretrained(folder)
    return folder
