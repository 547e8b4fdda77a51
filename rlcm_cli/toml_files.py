"""Reading TOML that a user wrote, and writing values as TOML.

Reading never ends in a traceback, whatever the text is; writing covers what a configuration holds.
"""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import shorten

LARGEST_FILE = 1 << 20
"""In bytes."""
DEEPEST = 32
"""Levels of nested tables and lists."""
RUN_CONFIG = "config.json"
WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""UTF-32 first: its little-endian mark begins with that of UTF-16."""
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a `--config`: a TOML file, a run directory, or the `config.json` of one.

    A byte order mark before UTF-8 is skipped, as TOML 1.1 asks for. Raises `ConfigError` for whatever cannot be read.
    """
    text = _read_text(path / RUN_CONFIG if path.is_dir() else path, f"--config {path}")
    is_json = text.lstrip().startswith("{")  # with which no TOML begins
    try:
        values = json.loads(text) if is_json else tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"--config {path}: its tables or lists are nested too deep") from None
    except ValueError as error:  # also that of an integer with thousands of digits
        kind = "JSON" if is_json else "TOML"
        raise ConfigError(f"--config {path}: not readable as {kind} ({shorten(str(error), 200)})") from None
    if is_too_deep(values):
        raise ConfigError(f"--config {path}: its tables or lists are nested too deep")
    if is_json:
        values = values.get("config")
        if not isinstance(values, dict):
            raise ConfigError(f"--config {path}: is JSON, but not the {RUN_CONFIG} of a run")
    return dict(values)


def has_byte_order_mark(path: Path) -> bool:
    """Return whether a file begins with UTF-8's byte order mark, which TOML 1.0 forbids."""
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def parse_value(text: str) -> Any:
    """Read a TOML value; anything that is not TOML is a string. Raises `ConfigError` for one that is too large."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
    except RecursionError:
        raise ConfigError(f"{shorten(text)}: the lists or tables of this value are nested too deep") from None
    except ValueError:
        raise ConfigError(f"{shorten(text)}: this number has too many digits") from None
    if is_too_deep(value):
        raise ConfigError(f"{shorten(text)}: the lists or tables of this value are nested too deep")
    return value


def is_too_deep(value: Any) -> bool:
    """Return whether tables and lists are nested so deeply that recursion could fail."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for table in level
            for item in (table.values() if isinstance(table, dict) else table if isinstance(table, list) else ())
        ]
    return bool(level)


def write_value(value: Any) -> str:
    """Write a string, number, boolean, list or mapping as a TOML value on one line."""
    match value:
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Mapping():
            pairs = ", ".join(f"{write_key(key)} = {write_value(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case Sequence():
            return f"[{', '.join(map(write_value, value))}]"
    raise TypeError(f"TOML has no word for {type(value).__name__}")


def write_key(*parts: str) -> str:
    """Write a key with a dot between its parts, each quoted if necessary."""
    return ".".join(part if BARE_KEY.fullmatch(part) else write_value(part) for part in parts)


def _read_text(path: Path, given: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        if path.name == RUN_CONFIG and path.parent.is_dir():
            raise ConfigError(
                f"{given}: is a directory without {RUN_CONFIG}; name a TOML file or a run directory"
            ) from None
        raise ConfigError(f"{given}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise ConfigError(f"{given}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{given}: is larger than {LARGEST_FILE >> 20} MiB, so it is not a configuration")
    for mark, name in WIDE_MARKS.items():
        if data.startswith(mark):
            raise ConfigError(f"{given}: not readable as TOML (it is {name} text; save it as UTF-8)")
    if b"\x00" in data:
        raise ConfigError(f"{given}: not readable as TOML (it has NUL bytes in it; save it as UTF-8 text)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{given}: not readable as TOML (line {line} is not UTF-8; save the file as UTF-8)"
        ) from None
