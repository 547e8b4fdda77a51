"""Shell completion of option values: names that this program knows, and runs on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

MOST = 100
"""Maximum number of folders to list."""


def complete_task(incomplete: str) -> list[str]:
    """Complete the name of a preset."""
    from rlcm_cli.config import task_names

    return _beginning(task_names(), incomplete)


def complete_reward(incomplete: str) -> list[str]:
    """Complete the name of a reward."""
    from rlcm_cli.rewards import REWARDS

    return _beginning(list(REWARDS), incomplete)


def complete_setting(incomplete: str) -> list[str]:
    """Complete the key of `--set KEY=VALUE` and, after the equals sign, the words that the setting can have."""
    from rlcm_cli.config import Config
    from rlcm_cli.sections import settings_of

    key, equals, word = incomplete.partition("=")
    found = settings_of(Config)
    if equals:
        words = [choice for field in found.get(key, ()) for choice in words_of(field.annotation)]
        return [f"{key}={choice}" for choice in _beginning(words, word)]
    return _beginning([f"{name}=" for name in found], incomplete)


def complete_from(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Make the function that completes an option by one of some words."""
    return lambda incomplete: _beginning(words, incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Complete the name of an embedded model, or a folder."""
    from rlcm_cli.config import EMBEDDED_MODELS

    return [*_beginning(list(EMBEDDED_MODELS), incomplete), *_folders(incomplete)]


def complete_architecture(incomplete: str) -> list[str]:
    """Complete the name of an architecture."""
    from rlcm_cli.models.parts import MEASURED, RANDOM

    return _beginning([MEASURED, *RANDOM], incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Complete the name of a device."""
    return _beginning(["auto", "cpu", "cuda", "mps"], incomplete)


def complete_run(incomplete: str) -> list[str]:
    """Complete the folder of a run: those in `runs`, and any folder that may contain one."""
    known = [f"{folder}" for folder in sorted(Path("runs").glob("*"))[:MOST] if (folder / "config.json").is_file()]
    return list(dict.fromkeys([*_beginning(known, incomplete), *_folders(incomplete)]))


def _folders(incomplete: str) -> list[str]:
    front, slash, _ = incomplete.rpartition("/")
    try:
        entries = sorted(entry for entry in Path(front + slash or ".").iterdir() if entry.is_dir())
    except OSError:
        return []
    named = [f"{front}{slash}{entry.name}" for entry in entries[:MOST] if not entry.name.startswith(".")]
    return [name if Path(name, "config.json").is_file() else f"{name}/" for name in _beginning(named, incomplete)]


def _beginning(names: Sequence[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def words_of(annotation: Any) -> list[str]:
    """Return the words that a setting can have; none where it can be anything else."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in words_of(part)]
