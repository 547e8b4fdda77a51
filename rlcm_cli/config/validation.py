"""Nested values to a `Config`, with every fault in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from rlcm_cli.config.settings import Config
from rlcm_cli.errors import ConfigError
from rlcm_cli.sections import SectionT
from rlcm_cli.wording import nearest, shorten

SPELLINGS = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
"""What other programs call a setting's values."""


def override_section(section: SectionT, values: Mapping[str, Any]) -> SectionT:
    """Give a section with some of its keys set; a value of None means "not given"."""
    given = {key: value for key, value in values.items() if value is not None}
    return _validate(type(section), {**section.model_dump(mode="json"), **given})


def parse_config(values: Mapping[str, Any]) -> Config:
    """Validate a nested mapping. Raises `ConfigError` with every fault in one line."""
    return _validate(Config, values)


def _validate(section: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    try:
        return section.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(fault) for fault in error.errors())) from None
    except TypeError as error:
        raise ConfigError(f"a value of the configuration is neither number, text nor table: {error}") from None


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the settings in which two identities differ, as `key: saved → asked`."""
    lines: list[str] = []
    for key in sorted({*saved, *asked}):
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {json.dumps(old)} → {json.dumps(new)}")
    return lines


def _describe(fault: Any) -> str:
    key = shorten(".".join(str(part) for part in fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(key, _known_keys(Config))}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    if fault["type"] == "literal_error":
        given, words = str(fault["input"]), re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        meant = SPELLINGS.get(given.lower())
        message += f" (did you mean '{meant}'?)" if meant in words else nearest(given, words)
    return f"'{key}' is {shorten(json.dumps(fault['input']))}: {message[0].lower()}{message[1:]}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
