"""Size as a JPEG: a reward for plain or for busy images (DDPO, arXiv 2305.13301, section 5.2)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rlcm_cli.rewards.contract import RewardFn

if TYPE_CHECKING:
    from torch import Tensor

JPEG_QUALITY = 95


def jpeg_kilobytes(image: Tensor) -> float:
    """Return the size of an image as Pillow's JPEG at quality 95.

    Args:
        image: uint8 [3, H, W], RGB, on any device.

    Returns:
        Kilobytes: bytes / 1000.
    """
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.tell() / 1000


def compressibility() -> RewardFn:
    """Make the reward for small files: the negative of `jpeg_kilobytes`."""
    return lambda images, prompts, metadata: -_sizes(images)


def incompressibility() -> RewardFn:
    """Make the reward for large files: `jpeg_kilobytes`."""
    return lambda images, prompts, metadata: _sizes(images)


def _sizes(images: Tensor) -> Tensor:
    import torch

    return torch.tensor([jpeg_kilobytes(image) for image in images], dtype=torch.float32)
