"""Pipelines that read prompts by T5, tiny, with random weights, saved in the hub's layout."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from rlcm_cli.models.embedded import embedded_folder

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""With T5's ids 0 to 2."""
CORPUS = ("a photo of a cat", "a dog on blue", "a red car", "a house", "a dog on green, digital art")


@functools.cache
def build_t5_tokenizer() -> T5TokenizerFast:
    """Train a unigram model of a few tokens, which ends a text with `</s>`, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=[PAD, END, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return T5TokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, unk_token=UNKNOWN, pad_token=PAD, extra_ids=0, model_max_length=512
    )


def build_t5(*, width: int) -> T5EncoderModel:
    """Build an encoder of two layers, with T5 1.1's gated activations."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(build_t5_tokenizer()) + 4,
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def build_sd3(
    folder: Path, *, t5: bool = True, scheduler: dict[str, Any] | None = None, new: bool = True, sample_size: int = 8
) -> Path:
    """Save Stable Diffusion 3.5's make, of its medium size; with `new` False that of 3; `t5` False leaves T5 out."""
    torch.manual_seed(21)
    tokenizer = _tokenizer()
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **(scheduler or {})}),
        vae=_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, width=16, projection=16)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, width=24, projection=20)),
        tokenizer_2=tokenizer,
        text_encoder_3=build_t5(width=48) if t5 else None,
        tokenizer_3=build_t5_tokenizer() if t5 else None,
        transformer=SD3Transformer2DModel(
            sample_size=sample_size,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=16 + 20,
            pos_embed_max_size=16,
            dual_attention_layers=(0,) if new else (),
            qk_norm="rms_norm" if new else None,
        ),
    ).save_pretrained(folder)
    return folder


def build_flux(folder: Path, *, guided: bool = False) -> Path:
    """Save FLUX.1's make: schnell, or dev with `guided`."""
    torch.manual_seed(22)
    tokenizer = _tokenizer()
    scheduler = {"shift": 3.0, "use_dynamic_shifting": True} if guided else {"shift": 1.0}
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=_autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=16)),
        tokenizer=tokenizer,
        text_encoder_2=build_t5(width=24),
        tokenizer_2=build_t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=guided,
            axes_dims_rope=(4, 4, 4),
        ),
    ).save_pretrained(folder)
    return folder


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(embedded_folder("emoji-lcm") / "tokenizer")


def _text_config(tokenizer: CLIPTokenizer, *, width: int, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _autoencoder(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **settings,
    )
