"""The presets that are shipped, `tasks/NAME.toml`."""

from __future__ import annotations

from importlib import resources

from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import nearest


def task_names() -> list[str]:
    """Return the names of the shipped presets, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _tasks_folder().iterdir() if entry.name.endswith(".toml")
    )


def task_text(name: str) -> str:
    """Return the TOML text of a preset, which `--config` takes as it is. Raises `ConfigError` for an unknown name."""
    known = task_names()
    if name not in known:
        raise ConfigError(f"unknown task '{name}'{nearest(name, known)}; `rlcm tasks` lists them all")
    lines = _tasks_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8").splitlines(keepends=True)
    # Below the opening comment of the file, and above its first table.
    first = next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    return "".join([*lines[:first], f'task = "{name}"\n\n', *lines[first:]])


def _tasks_folder() -> resources.abc.Traversable:
    return resources.files("rlcm_cli").joinpath("tasks")
