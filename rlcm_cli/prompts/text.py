"""Text from files of people: its encoding, and what a prompt cannot hold."""

from __future__ import annotations

import codecs
from pathlib import Path

from rlcm_cli.errors import ConfigError

MARKS = (
    # UTF-32's mark in little-endian order starts with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
"""Byte order mark → encoding: editors and shells of Windows write all of them."""


def read_text(path: Path, what: str = "prompt file") -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: A file, or a pipe.
        what: What messages call it.

    Raises:
        ConfigError: If it is missing, unreadable, in another encoding, or holds NUL characters.
    """
    try:
        data = path.read_bytes() if not path.is_char_device() and not path.is_block_device() else None
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} is not there; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{what} {path} cannot be read: {reason}") from error
    if data is None:
        raise ConfigError(f"{what} {path} is a device, not a file; check the path")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.removesuffix("-sig").upper()
        raise ConfigError(
            f"{what} {path} is not {name} text (line {line}, byte {error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(
            f"{what} {path}, line {line}: holds a NUL character, as binary files and UTF-16 without a byte order mark "
            "do; save it as UTF-8 text"
        )
    return text


def find_text_fault(text: str) -> str | None:
    """Return what a prompt holds that cannot be stored as text; None: nothing."""
    if "\0" in text:
        return "holds a NUL character"
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        return "holds half of a character (a lone surrogate), as text does that was cut in the middle of an emoji"
    return None
