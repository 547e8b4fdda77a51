"""Pictures of other people's files as a model is trained on them: upright, opaque, in 8 bits a channel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from rlcm_cli.wording import one_line

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Of files that are taken for pictures."""
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16 bits; it clips them where it converts them."""

PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for files that are damaged, no pictures, or far too large."""


class PictureError(ValueError):
    """A picture that cannot be read, or shows nothing that could be trained on."""


def open_picture(file: Path) -> Image.Image:
    """Read a picture as `flatten_picture` makes it. Raises `PictureError`."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of twice as many pixels as it reads without a word, and refuses four times as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                return flatten_picture(picture)
    except PictureError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PictureError(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels; shrink it") from None
    except FileNotFoundError:
        raise PictureError("is not there") from None
    except PILLOW_ERRORS as error:
        raise PictureError(f"is damaged or not a picture ({one_line(error)})") from None


def flatten_picture(picture: Any) -> Image.Image:
    """Return the first frame of a picture in RGB: turned as its camera was held, on white where it is transparent.

    Grey of 16 bits is scaled to 8. Raises `PictureError` for values without a known range, and Pillow's errors for a
    file that is cut short.
    """
    picture.seek(0)
    picture.load()
    source = picture.format
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in DEEP_MODES or (upright.mode == "I" and source == "PNG"):  # whose greys have 16 bits at most
        return Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise PictureError(f"has pixels of 32 bits (mode {upright.mode}), whose white is not known; save it as PNG")
    if upright.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in upright.info:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        return opaque.convert("RGB")
    return upright.convert("RGB")
