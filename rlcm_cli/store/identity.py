"""Which run a file belongs to.

A run is what its configuration computes: the digest of the settings that are fixed for good. `config.json` states it,
and the inputs and each plan, checkpoint, evaluation and metrics file repeat it, so that a file of another run is told,
and so is a configuration that was edited after the run had begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ForeignFileError, MissingFileError
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import REMEDY, read_json
from rlcm_cli.wording import command

CHANGEABLE = ("runtime", "monitor", "ray")
"""Sections of a configuration that may change when a run is resumed."""


def identify_run(config: Mapping[str, Any]) -> str:
    """Return the identity of the run of a configuration, as `config.json` has it: 64 hexadecimal digits."""
    fixed = {key: value for key, value in config.items() if key not in CHANGEABLE}
    if isinstance(fixed.get("evaluate"), Mapping):
        fixed["evaluate"] = {key: value for key, value in fixed["evaluate"].items() if key != "every"}
    return digest_json(fixed)


def read_config_record(layout: RunLayout) -> dict[str, Any]:
    """Read `config.json` and make sure that its settings are those that the run was made with.

    Raises `MissingFileError` or `ForeignFileError`, and the errors of `read_json`.
    """
    try:
        record = read_json(layout.config)
    except MissingFileError:
        start = command("loop", "--task", "NAME", "--run", layout.root)
        raise MissingFileError(
            f"{layout.root}: is not a run directory (no config.json); `{start}` starts one there"
        ) from None
    config, versions = record.get("config"), record.get("versions", {})
    if not isinstance(config, dict) or not isinstance(versions, dict):
        raise ForeignFileError(f"{layout.config}: is not the configuration of a run; choose another --run")
    if record.get("run") != identify_run(config):
        raise ForeignFileError(
            f"{layout.config}: its settings are not those that the run was made with: it was edited, or lacks its "
            f"digest; put them back, or start a new run with them in another --run (only "
            f"{', '.join(f'[{section}]' for section in CHANGEABLE)} and evaluate.every may change)"
        )
    return record


def read_run_identity(layout: RunLayout) -> str:
    """Read which run a directory is, before something is published in it.

    Raises as `read_config_record`, and `MissingFileError` where the directory has been moved or removed.
    """
    if not layout.config.exists():
        raise MissingFileError(
            f"{layout.root}: is not a run directory any more: it was moved or removed while this process worked on "
            "it; run the same command again with its new place"
        )
    return str(read_config_record(layout)["run"])


def check_owner(run: str, layout: RunLayout, path: Path, remedy: str | None = None) -> None:
    """Raise `ForeignFileError` unless a file states the run in whose directory it lies.

    A checkpoint that was copied out of its run lies in none, and is not checked.
    """
    if layout.config.exists() and run != read_config_record(layout)["run"]:
        raise ForeignFileError(
            f"{path}: belongs to another run than the one of {layout.config}; "
            + (REMEDY.format(path=path) if remedy is None else remedy)
        )
