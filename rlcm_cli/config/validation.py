"""Nested values to a `Config`, with every fault in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from rlcm_cli.config.settings import Config
from rlcm_cli.errors import ConfigError
from rlcm_cli.sections import Section, SectionT, choices_of, sections_of
from rlcm_cli.wording import nearest, shorten

SPELLINGS = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
"""What other programs call a setting's values."""
FORMER_KEYS = {
    "model.policy": "sampler.kind",
    "train.rwr_beta": "objective.beta",
    "watch": "monitor",
}
"""What settings were called before: names that are too different to be found by their spelling."""


def override_section(section: SectionT, values: Mapping[str, Any]) -> SectionT:
    """Return a section with some of its keys set; a value of None means "not given"."""
    given = {key: value for key, value in values.items() if value is not None}
    return _validate(type(section), {**section.model_dump(mode="json"), **given})


def parse_config(values: Mapping[str, Any]) -> Config:
    """Validate a nested mapping. Raises `ConfigError` with every fault in one line."""
    return _validate(Config, {**values, **_name_kinds(values)})


def _name_kinds(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables that are one of several kinds but do not say which, with the default's kind."""
    unnamed = {
        name: values[name]
        for name in choices_of(Config)
        if isinstance(values.get(name), Mapping) and "kind" not in values[name]
    }
    return {
        name: {"kind": Config.model_fields[name].get_default(call_default_factory=True).kind, **table}
        for name, table in unnamed.items()
    }


def _validate(section: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    try:
        return section.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(fault, section) for fault in error.errors())) from None
    except TypeError as error:
        raise ConfigError(f"a value of the configuration is not a number, a text or a table: {error}") from None


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


def _describe(fault: Any, section: type[Section]) -> str:
    key, table = _locate(fault["loc"], section)
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_hint(key, str(fault['loc'][-1]), table)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    if fault["type"] == "union_tag_not_found":
        return f"'{key}.kind' is missing"
    if fault["type"] == "union_tag_invalid":
        given, words = fault["ctx"]["tag"], re.findall(r"'([^']+)'", fault["ctx"]["expected_tags"])
        return f"'{key}.kind' is {shorten(json.dumps(given))}: input should be {_list(words)}{nearest(given, words)}"
    if fault["type"] == "literal_error":
        given, words = str(fault["input"]), re.findall(r"'([^']+)'", fault["ctx"]["expected"])
        meant = SPELLINGS.get(given.lower())
        message += f" (did you mean '{meant}'?)" if meant in words else nearest(given, words)
    return f"'{key}' is {shorten(json.dumps(fault['input']))}: {message[0].lower()}{message[1:]}"


def _list(words: Sequence[str]) -> str:
    *others, last = (f"'{word}'" for word in words)
    return f"{', '.join(others)} or {last}" if others else last


def _locate(location: Sequence[str | int], section: type[Section]) -> tuple[str, type[Section] | None]:
    """Return the dotted key of a fault, and its table, if that is a section."""
    keys: list[str] = []
    table: type[Section] | None = section
    below, rest = [section], list(location)
    while rest:
        if len(below) > 1:  # pydantic puts the kind of a table that is one of several behind the table's name
            kind = rest.pop(0)
            below = [one for one in below if _kind_of(one) == kind]
            continue
        table = below[0] if below else None
        keys.append(str(rest.pop(0)))
        setting = table.model_fields.get(keys[-1]) if table else None
        below = sections_of(setting.annotation) if setting else []
    return shorten(".".join(keys)), table


def _hint(key: str, name: str, table: type[Section] | None) -> str:
    """Return the end of an unknown key's line: the kind it is a setting of, or what was probably meant."""
    for choice in choices_of(Config):
        members = sections_of(Config.model_fields[choice].annotation)
        owners = [_kind_of(one) for one in members if name in one.model_fields]
        if table in members and owners:
            own = _kind_of(table)
            return f" of the kind '{own}': it belongs to {_list(owners)}; leave it out, or change {choice}.kind"
    if key in FORMER_KEYS:
        return f" (did you mean '{FORMER_KEYS[key]}'?)"
    return nearest(key, _known_keys(Config))


def _kind_of(table: type[Section] | None) -> str:
    return str(table.model_fields["kind"].default) if table else ""


def _known_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, setting in section.model_fields.items():
        keys.append(prefix + name)
        for below in sections_of(setting.annotation):
            keys += [key for key in _known_keys(below, f"{prefix}{name}.") if key not in keys]
    return keys
