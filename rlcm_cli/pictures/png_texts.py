"""The text chunks of a PNG, which say how it was made; reading them needs no torch."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from rlcm_cli.errors import ConfigError


def read_png_texts(file: Path, option: str = "", remedy: str = "pass one made by `rlcm generate`") -> dict[str, str]:
    """Read the text chunks of a PNG made by any program.

    Raises `ConfigError`, whose line starts with `option`, and for what is no PNG ends with `remedy`.
    """
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
    except FileNotFoundError:
        raise ConfigError(f"{option}{file}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ConfigError(f"{option}{file}: is not a PNG; {remedy}") from None
