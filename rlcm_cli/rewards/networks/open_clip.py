"""From open_clip's names and shapes of a ViT CLIP's weights to those of transformers' CLIPModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")
_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    # transformers spells it so.
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""Matrices that stand on the right of a vector there, on the left here."""


def map_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor under its name and shape in CLIPModel; an unknown name is kept, for the loader to refuse.

    Args:
        tensors: State dict of open_clip's `CLIP` with a `VisionTransformer`.

    Returns:
        State dict of CLIPModel, of the same dtypes.
    """
    mapped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if block := _BLOCK.fullmatch(name):
            visual, index, part, kind = block.groups()
            layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{index}"
            if part == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    mapped[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
            else:
                mapped[f"{layer}.{_BLOCK_NAMES.get(part, part)}.{kind}"] = tensor
        elif name in _PROJECTIONS:
            mapped[_PROJECTIONS[name]] = tensor.T.contiguous()
        else:
            mapped[_NAMES.get(name, name)] = tensor
    return mapped
