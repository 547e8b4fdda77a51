"""Files of a foreign folder, looked at before a library reads them: none of them leads elsewhere or names code."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcm_cli.foreign.faults import ForeignError

LARGEST_JSON = 100_000_000
"""Bytes; the largest tokenizers take 35 MB."""
ATTENTION_KEYS = ("attn_implementation", "experts_implementation")


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a regular file. Raises `ForeignError`."""
    check_regular(file)
    if file.stat().st_size > LARGEST_JSON:
        raise ForeignError(f"{_place(file)} has {file.stat().st_size:,} bytes, too many for a configuration")
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_nan)
    except OSError as error:
        raise ForeignError(f"{_place(file)} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        fault = "nested too deep" if isinstance(error, RecursionError) else error
        raise ForeignError(f"{_place(file)} is not readable as JSON ({fault})") from None
    if not isinstance(value, dict):
        raise ForeignError(f"{_place(file)} is not a JSON object")
    return value


def check_regular(file: Path) -> None:
    """Raise `ForeignError` for what is missing or not a regular file: a device or a pipe would never end."""
    try:
        if not file.exists():
            raise ForeignError(f"{_place(file)} is missing")
        if not file.is_file():
            raise ForeignError(f"{_place(file)} is not a regular file")
    except OSError as error:
        raise ForeignError(f"{_place(file)} cannot be read ({error.strerror})") from None


def check_configuration(values: Mapping[str, Any], file: Path) -> None:
    """Raise `ForeignError` where a configuration names code of the hub.

    transformers takes `"_attn_implementation": "OWNER/KERNEL"` as the name of a compiled kernel to download and run.
    """
    for key, value in _walk(values):
        if key.strip("_").removesuffix("_internal") in ATTENTION_KEYS and any(
            isinstance(name, str) and "/" in name for name in (value, *_names_in(value))
        ):
            raise ForeignError(
                f"{_place(file)} names a kernel of the hub ({key}: {value}), which is code and is not run; "
                "remove that entry"
            )


def check_index(index: Path) -> list[Path]:
    """Return the shards that an index of weights names. Raises `ForeignError` for one that is not in its folder."""
    values = read_json_object(index)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(values.get("metadata"), dict):
        raise ForeignError(f"{_place(index)} is not an index of weights (weight_map, metadata)")
    shards = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if not name.endswith(".safetensors") or "/" in name or "\\" in name or name.startswith("."):
            raise ForeignError(f"{_place(index)} names {name!r}, which is not a safetensors file of the same folder")
        check_regular(index.parent / name)
        shards.append(index.parent / name)
    return shards


def suggest_path(name: str) -> str:
    """Return `; did you mean X?` where a path like the one that is not there is, else ""."""
    path = Path(name)
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _names_in(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _place(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _refuse_nan(constant: str) -> float:
    if constant == "NaN":  # diffusers itself writes infinities
        raise ValueError("NaN is not a value")
    return float(constant)
