"""Contact sheets: rows of equal images, written as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rlcm_cli.store.atomic import replace_bytes

if TYPE_CHECKING:
    from torch import Tensor

GAP = 2


def to_picture(image: Tensor | np.ndarray) -> Image.Image:
    """Turn uint8 [3, H, W], in host memory, into a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(np.asarray(image).transpose(1, 2, 0)))


def arrange_sheet(images: Sequence[Tensor | np.ndarray], columns: int) -> Image.Image:
    """Lay images, uint8 [3, H, W] of one size, in rows on a light ground."""
    height, width = images[0].shape[1:]
    rows = -(-len(images) // columns)
    size = (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, (221, 221, 221))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(to_picture(image), (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


def write_png(path: Path, picture: Image.Image, info: PngInfo | None = None) -> None:
    """Write a picture atomically, with text chunks where given."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, pnginfo=info)
    replace_bytes(path, buffer.getvalue())
