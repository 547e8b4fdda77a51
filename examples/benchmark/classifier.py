"""The independent classifier of the embedded models: what it recognises, and the features that it sees."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CLASSIFIERS = {64: "emoji_lcm", 96: "emoji_sprint"}
"""The recipe whose classifier is made for pictures of so many pixels a side; it is in no reward."""


def recognise(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Tell of each image, uint8 [B, 3, H, W], whether the animal of its prompt is the first of 45, bool [B]."""
    model = _load(images.shape[-1])
    with torch.no_grad():
        logits = torch.cat([model(_scaled(part)).logits for part in images.split(64)])
    found = [model.config.id2label[index] for index in logits.argmax(1).tolist()]
    return torch.tensor([label in prompt.split() for label, prompt in zip(found, prompts, strict=True)])


def extract_features(images: Tensor) -> Tensor:
    """Return what the classifier's last layer sees of images, uint8 [B, 3, H, W]: float32 [B, F]."""
    model = _load(images.shape[-1])
    with torch.no_grad():
        return torch.cat([model.resnet(_scaled(part)).pooler_output.flatten(1) for part in images.split(64)])


@functools.cache
def _load(size: int) -> Any:
    from transformers import AutoModelForImageClassification

    folder = Path(__file__).parents[1] / CLASSIFIERS[size] / "classifier"
    return AutoModelForImageClassification.from_pretrained(folder).eval()


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1
