"""Small random models of the Qwen-VL series, saved as the hub has them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch

EDGES = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}
"""Of a patch, in pixels, as published."""
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
WHOLE_WORDS = [
    "Yes", "yes", "No", "one", "One", "two", "Two", "eleven", "Eleven", "other", "cat", "dog", "image", "figure",
    "show", "rating", "Score", "Alignment", "Coherence", "Style", "Evaluate", "visual", "should",
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}"
    "SYSTEM"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the published templates write of a chat of one image and one text."""
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What those of Qwen2-VL and Qwen2.5-VL write before it."""


TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "head_dim", "rms_norm_eps",
    "rope_theta", "rope_scaling", "attention_bias", "attention_dropout", "initializer_range",
)  # fmt: skip


def template_of(kind: str) -> str:
    return TEMPLATE.replace("SYSTEM", "" if kind == "qwen3_vl" else SYSTEM)


def make_tokenizer():
    """A tokenizer of one token a byte, and of some words, with and without a space before them."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens, merges = sorted(ByteLevel.alphabet()), []
    for word in WHOLE_WORDS:
        for first, second in [*((word[:end], word[end]) for end in range(1, len(word))), ("Ġ", word)]:
            if first + second not in tokens:
                tokens.append(first + second)
                merges.append((first, second))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=32768)
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def save_reader(folder: Path, kind: str, **preprocessing) -> int:
    """Save tokenizer, chat template and preprocessing; return the size of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template_of(kind)}))
    clip = kind != "qwen3_vl"
    values = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073] if clip else [0.5] * 3,
        "image_std": [0.26862954, 0.26130258, 0.27577711] if clip else [0.5] * 3,
        "patch_size": EDGES[kind],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor" if clip else "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor" if kind == "qwen3_vl" else "Qwen2VLProcessor",
        **({"min_pixels": 3136, "max_pixels": 12845056} if clip else {}),
        **({} if clip else {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}),
        **preprocessing,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return len(tokenizer)


def config_of(kind: str, vocabulary: int):
    from transformers import AutoConfig

    special = {token: vocabulary - len(SPECIAL_TOKENS) + place for place, token in enumerate(SPECIAL_TOKENS)}
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": EDGES[kind], "in_channels": 3, "spatial_merge_size": 2}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    if kind == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    if kind == "qwen3_vl":
        text |= {"head_dim": 16}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    scaling = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    if kind == "qwen3_vl":
        scaling["mrope_interleaved"] = True
    return AutoConfig.for_model(
        kind,
        text_config={**text, "rope_parameters": scaling},
        vision_config=vision,
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
    )


def save_config(config, folder: Path) -> None:
    """Write config.json as the repositories have it: of Qwen2-VL and Qwen2.5-VL without a section for the text."""
    values = config.to_dict()
    text = values.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    kept = {key: text[key] for key in TEXT_KEYS if key in text}
    if config.model_type == "qwen3_vl":
        values["text_config"] = {**kept, "model_type": text["model_type"]}
    else:
        kept["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        values |= {**kept, "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 2}
    (folder / "config.json").write_text(json.dumps(values))


def draw_weights(file: Path) -> None:
    """Fill a file of weights with random ones by their names, so that they are the same whatever transformers draws.

    Their size lets an answer depend on the image; the usual fresh weights are too small for that.
    """
    from safetensors.torch import load_file, save_file

    drawn = load_file(file)
    for name, tensor in drawn.items():
        if tensor.ndim > 1:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            scale = 1 if "embed_tokens" in name else (3 if "patch_embed" in name else 1.2) / tensor[0].numel() ** 0.5
            drawn[name] = scale * torch.randn(tensor.shape, generator=generator)
    if "lm_head.weight" in drawn:
        drawn["lm_head.weight"][-len(SPECIAL_TOKENS) :] = 0  # trained models do not write these in an answer
    save_file(drawn, file, metadata={"format": "pt"})


def save_small_qwen(folder: Path, kind: str = "qwen3_vl", penalty: float = 1.0, **preprocessing) -> Path:
    """Save a model with everything beside it; return the folder."""
    from transformers import AutoModelForImageTextToText

    config = config_of(kind, save_reader(folder, kind, **preprocessing))
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    draw_weights(folder / "model.safetensors")
    save_config(config, folder)
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": penalty}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder


def pictures(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Images uint8 [count, 3, height, width] of plain fields, which no resizing changes, and one hue each."""
    generator = torch.Generator().manual_seed(count)
    fields = torch.randint(0, 100, (count, 3, 2, 2), generator=generator)
    hues = torch.randint(0, 156, (count, 3, 1, 1), generator=generator)
    large = (fields + hues).repeat_interleave(height // 2, 2).repeat_interleave(width // 2, 3)
    return large.to(torch.uint8)


def save_small_hpsv3(folder: Path) -> tuple[Path, Path]:
    """Save what MizzenAI/HPSv3 and Qwen2-VL have; return the checkpoint and the folder of the processor."""
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText

    config = config_of("qwen2_vl", save_reader(folder / "processor", "qwen2_vl"))
    save_config(config, folder / "processor")
    config.text_config.vocab_size += 1  # the reward token
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder / "network")
    checkpoint, width = folder / "HPSv3.safetensors", config.text_config.hidden_size
    tensors = load_weights(folder / "network" / "model.safetensors")
    for place, shape in {"0": (1024, width), "3": (16, 1024), "5": (2, 16)}.items():
        tensors |= {f"rm_head.{place}.weight": torch.empty(shape), f"rm_head.{place}.bias": torch.ones(shape[0])}
    save_file(tensors, checkpoint)
    draw_weights(checkpoint)
    return checkpoint, folder / "processor"


def load_weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)
