"""ImageReward: what people prefer, by a BLIP that reads the prompt while it looks at the image (arXiv 2304.05977)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.base.weights import WeightFile, Weights
from rlcm_cli.rewards.networks.clip_model import IMAGE_BATCH, TOKENIZER_FILES, load_tokenizer
from rlcm_cli.rewards.networks.linear_head import LinearHead, make_linear_head
from rlcm_cli.rewards.networks.loading import fill_network
from rlcm_cli.rewards.networks.preprocessing import Preprocessing
from rlcm_cli.rewards.networks.tensor_file import read_tensors
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = WeightFile("THUDM/ImageReward/ImageReward.pt", "1.8 GB")
TOKENIZER = Weights("google-bert/bert-base-uncased", ("config*", *TOKENIZER_FILES), "0.7 MB")

REWARD_MEAN = 0.16717362830052426
REWARD_STD = 1.0333394966054072
"""Of the raw rewards over the authors' data; the published code standardises with them."""

_CONTEXT = 35
_HEAD_WIDTH = 64
"""Of an attention head, in ViT-L (1024 / 16) and in BERT-base (768 / 12)."""

_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "norm.": "post_layernorm.",
}
_BLOCK_NAMES = {
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "mlp.": "mlp.",
}


def image_reward(checkpoint: Path, tokenizer: Path) -> RewardFn:
    """Make the reward: (MLP(first token of BERT(prompt, ViT(image))) − mean) / std.

    ViT-L/16 at 224 × 224, bicubic resize, centre crop, CLIP's normalisation; BERT-base attends to its output in every
    layer; prompts are cut to 35 tokens; the head is linear, 768-1024-128-64-16-1.

    Args:
        checkpoint: ImageReward.pt, or the same tensors as safetensors.
        tokenizer: Folder of the tokenizer of bert-base-uncased.

    Raises:
        RewardError: If the checkpoint or the tokenizer cannot be loaded, or the checkpoint is another model's.
    """
    tokens = load_tokenizer(tokenizer, reward="image_reward")
    # BLIP's vocabulary has two more words than BERT's; ImageReward never adds them, but a prompt could.
    tokens.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return load_model(checkpoint, tokens)


@dataclass(frozen=True)
class ImageRewardModel:
    """The reward function: both encoders, the head, preprocessing and tokenizer.

    Attributes:
        vision: BlipVisionModel.
        text: BlipTextModel with cross-attention, without a pooler.
        head: On the first token.
        preprocess: From uint8 images to the pixels of `vision`.
        tokenizer: BERT's.
    """

    vision: Any
    text: Any
    head: LinearHead
    preprocess: Preprocessing
    tokenizer: Any

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        """Score as `RewardFn`."""
        import torch

        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=_CONTEXT, return_tensors="pt"
        ).to(images.device)
        self.vision.to(images.device)
        self.text.to(images.device)
        head = self.head.to(images.device)
        parts = zip(
            torch.split(images, IMAGE_BATCH),
            torch.split(tokens["input_ids"], IMAGE_BATCH),
            torch.split(tokens["attention_mask"], IMAGE_BATCH),
            strict=True,
        )
        rewards = torch.cat([head(self._read(*part)) for part in parts])
        return (rewards - REWARD_MEAN) / REWARD_STD

    def _read(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the first token has become, float32 [B, 768]."""
        seen = self.vision(pixel_values=self.preprocess(images)).last_hidden_state
        # BlipTextModel has cross-attention only as a decoder; with `is_decoder` False it reads in both directions.
        read = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=seen, is_decoder=False
        )
        first: Tensor = read.last_hidden_state[:, 0]
        return first


def load_model(path: Path, tokenizer: Any) -> ImageRewardModel:
    """Load a checkpoint of ImageReward's own layout into transformers' BLIP.

    Sizes are read off the tensors' shapes. BLIP's projections for retrieval, which ImageReward does not use, are left.

    Args:
        path: The file.
        tokenizer: Of no more tokens than the checkpoint embeds.

    Raises:
        RewardError: If the file cannot be read or lacks a part.
    """
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    tensors = read_tensors(path, reward="image_reward")
    vision, text = _map_vision(_below(tensors, _VISION)), _map_text(_below(tensors, _TEXT))
    try:
        patches, words = vision["embeddings.patch_embedding.weight"], text["embeddings.word_embeddings.weight"]
        width, patch = patches.shape[0], patches.shape[-1]
        edge = patch * math.isqrt(vision["embeddings.position_embedding"].shape[1] - 1)
        vision_config = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=vision["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_count_layers(vision),
            num_attention_heads=width // _HEAD_WIDTH,
            image_size=edge,
            patch_size=patch,
            # timm's, of the original; transformers' BLIP has 1e-5.
            layer_norm_eps=1e-6,
        )
        text_config = BlipTextConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            encoder_hidden_size=width,
            intermediate_size=text["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_count_layers(text),
            num_attention_heads=words.shape[1] // _HEAD_WIDTH,
            max_position_embeddings=text["embeddings.position_embeddings.weight"].shape[0],
        )
    except (KeyError, IndexError) as error:
        raise RewardError(
            f"reward 'image_reward': {path} is not a checkpoint of ImageReward ({one_line(error)}); name "
            "ImageReward.pt"
        ) from error
    if len(tokenizer) > words.shape[0]:
        raise RewardError(
            f"reward 'image_reward': the tokenizer has {len(tokenizer)} tokens, and {path} embeds {words.shape[0]}; "
            f"set tokenizer to {TOKENIZER.source}"
        )
    seer = fill_network(BlipVisionModel, vision_config, vision, path, reward="image_reward")
    reader = fill_network(BlipTextModel, text_config, text, path, reward="image_reward", add_pooling_layer=False)
    return ImageRewardModel(
        vision=seer.eval().requires_grad_(False),
        text=reader.eval().requires_grad_(False),
        head=make_linear_head(_below(tensors, _HEAD), reward="image_reward"),
        preprocess=Preprocessing((edge, edge), edge),
        tokenizer=tokenizer,
    )


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _map_vision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From timm's names to BlipVisionModel's; both keep q, k and v in one matrix, in this order."""
    mapped = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if block:
            mapped[f"encoder.layers.{block[1]}.{_renamed(block[2], _BLOCK_NAMES)}"] = tensor
        else:
            mapped[_renamed(name, _VISION_NAMES)] = tensor
    return mapped


def _map_text(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the names, which are BlipTextModel's; the positions, which old files carry, are not weights."""
    return {name: tensor for name, tensor in tensors.items() if name != "embeddings.position_ids"}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _count_layers(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max(int(match[1]) for name in tensors if (match := re.match(r"encoder\.layers?\.(\d+)\.", name)))


ENTRIES = {
    "image_reward": RewardEntry(
        image_reward,
        description="which image people prefer for the prompt: ImageReward v1.0, a BLIP",
        value_range="about -2.3 to 2, standard deviations",
        weights={"checkpoint": CHECKPOINT, "tokenizer": TOKENIZER},
        neural=True,
        differentiable=True,
    ),
}
