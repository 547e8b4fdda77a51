"""What a shell completes after an option: names that this program knows, and runs on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

MOST = 100
"""Folders that are looked at."""


def complete_task(incomplete: str) -> list[str]:
    """Complete the name of a preset."""
    from rlcm_cli.config import task_names

    return _beginning(task_names(), incomplete)


def complete_reward(incomplete: str) -> list[str]:
    """Complete the name of a reward."""
    from rlcm_cli.rewards import REWARDS

    return _beginning(list(REWARDS), incomplete)


def complete_setting(incomplete: str) -> list[str]:
    """Complete the key of `--set KEY=VALUE`; after the sign, the words that a setting can have."""
    from rlcm_cli.config import Config

    key, equals, word = incomplete.partition("=")
    found = _leaves(Config)
    if equals:
        return [f"{key}={choice}" for choice in _words(found.get(key)) if choice.startswith(word)]
    return _beginning([f"{name}=" for name in found], incomplete)


def complete_words(section: str, field: str) -> Callable[[str], list[str]]:
    """Make the function that completes an option by the words that its setting can have."""

    def complete(incomplete: str) -> list[str]:
        from rlcm_cli.config import Config

        return _beginning(_words(_leaves(Config)[f"{section}.{field}"]), incomplete)

    return complete


def complete_model(incomplete: str) -> list[str]:
    """Complete the name of an embedded model, or a folder."""
    from rlcm_cli.config import EMBEDDED_MODELS

    return [*_beginning(list(EMBEDDED_MODELS), incomplete), *_folders(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Complete the name of a device."""
    return _beginning(["auto", "cpu", "cuda", "mps"], incomplete)


def complete_run(incomplete: str) -> list[str]:
    """Complete the folder of a run: those in `runs`, and any folder on the way to one."""
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


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _leaves(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the annotation of each setting that is not a section itself, by its dotted key."""
    from rlcm_cli.sections import sections_of

    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        tables = sections_of(field.annotation)
        for table in tables:
            for key, annotation in _leaves(table, f"{prefix}{name}.").items():
                found[key] = found[key] | annotation if key in found else annotation
        if not tables:
            found[prefix + name] = field.annotation
    return found


def _words(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for part in get_args(annotation) for word in _words(part)]
