"""Images as the judges want them: encoded, on the CPU."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def to_pillow(images: Tensor) -> list[Image]:
    """Turn images uint8 [B, 3, H, W], on any device, into B RGB images of Pillow."""
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def encode_png(image: Image) -> bytes:
    """Encode an image without loss."""
    return _encode(image, "PNG", {})


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode an image as Pillow's JPEG."""
    return _encode(image, "JPEG", {"quality": quality})


def _encode(image: Image, form: str, options: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()
