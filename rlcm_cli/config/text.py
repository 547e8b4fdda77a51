"""A configuration as commented TOML, which `--config` reads back."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from rlcm_cli.config.layers import PER_TASK
from rlcm_cli.config.settings import Config
from rlcm_cli.sections import Section
from rlcm_cli.toml_files import write_key, write_value

WIDTH = 100
"""Columns of a comment."""


def write_config(config: Config) -> str:
    """Write a configuration as TOML: every setting below its meaning; a setting without a value is a comment.

    The tables of a joint run replace `prompts`, `rewards` and `combine`, which are left out.
    """
    left_out = PER_TASK if config.tasks else ("tasks",)
    fields = {name: getattr(config, name) for name in Config.model_fields if name not in left_out}
    tables = {name: value for name, value in fields.items() if isinstance(value, Section | Mapping)}
    plain = {name: value for name, value in fields.items() if name not in tables}
    lines = [*_comment("A whole configuration: `rlcm loop --config FILE` needs no --task with it."), ""]
    for name, value in plain.items():
        lines += _setting(Config, name, value)
    for name, table in tables.items():
        lines += _table((name,), table, Config.model_fields[name].description)
    return "\n".join(lines) + "\n"


def _table(path: tuple[str, ...], table: Any, about: str | None) -> Iterator[str]:
    yield ""
    if isinstance(table, Section):
        yield from _comment(about or type(table).__doc__)
        yield f"[{write_key(*path)}]"
        values = {name: getattr(table, name) for name in type(table).model_fields}
        below = {name: value for name, value in values.items() if isinstance(value, Section)}  # such as [ray.sampler]
        for name, value in values.items():
            if name not in below:
                yield from _setting(type(table), name, value)
        for name, value in below.items():
            yield from _table((*path, name), value, type(table).model_fields[name].description)
        return
    yield from _comment(about)
    yield f"[{write_key(*path)}]"
    tables = {name: value for name, value in table.items() if isinstance(value, Section | Mapping)}
    yield from (f"{write_key(name)} = {write_value(value)}" for name, value in table.items() if name not in tables)
    for name, value in tables.items():
        yield from _table((*path, name), value, None)


def _setting(section: type[BaseModel], name: str, value: Any) -> Iterator[str]:
    yield from _comment(section.model_fields[name].description)
    yield f"# {name} = (not set)" if value is None else f"{name} = {write_value(value)}"


def _comment(text: str | None) -> Iterator[str]:
    if text:
        words = " ".join(text.split())
        yield from textwrap.wrap(words, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
