"""Size as a JPEG: a reward for plain or for busy images (DDPO, arXiv 2305.13301, section 5.2)."""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.base.threads import map_threaded

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

    # Three planes, as Pillow can read them where they lie: interleaving them first costs half as much as encoding.
    planes = [Image.fromarray(plane) for plane in image.cpu().numpy()]
    with _open_memory() as file:
        Image.merge("RGB", planes).save(file, format="JPEG", quality=JPEG_QUALITY)
        return file.seek(0, os.SEEK_END) / 1000


def _open_memory() -> BinaryIO:
    """Open a file in memory; on disk where the system has none there.

    Of a real file Pillow lets go of the interpreter's lock while it encodes, of a `BytesIO` it does not, and only
    one core would work.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("jpeg"), "w+b")
    return tempfile.TemporaryFile()


def compressibility() -> RewardFn:
    """Make the reward for small files: the negative of `jpeg_kilobytes`."""
    return lambda images, prompts, metadata: -_sizes(images)


def incompressibility() -> RewardFn:
    """Make the reward for large files: `jpeg_kilobytes`."""
    return lambda images, prompts, metadata: _sizes(images)


def _sizes(images: Tensor) -> Tensor:
    import torch

    return torch.tensor(map_threaded(jpeg_kilobytes, images.cpu()), dtype=torch.float32)


ENTRIES = {
    "compressibility": RewardEntry(
        compressibility,
        description="small as a JPEG: the negative of its size at quality 95",
        value_range="below 0, kB (1000 bytes)",
        bounds=(-math.inf, 0.0),
    ),
    "incompressibility": RewardEntry(
        incompressibility,
        description="large as a JPEG: its size at quality 95",
        value_range="above 0, kB (1000 bytes)",
        bounds=(0.0, math.inf),
    ),
}
