"""Moving a damaged file out of the way, so that its phase makes it again."""

from __future__ import annotations

import os
from pathlib import Path

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.atomic import set_aside
from rlcm_cli.store.layout import with_receipt
from rlcm_cli.store.locate import find_run
from rlcm_cli.store.remote.remote_run import open_remote, split_url


def quarantine(path: Path) -> list[Path]:
    """Move a file or folder of a run, with its receipt, into the run's `quarantine/`; return the new paths.

    Nothing is deleted and nothing overwritten. Raises `ConfigError`, `MissingFileError` or `StorageFullError`.
    """
    if path.is_symlink() and not (path / "config.json").is_file():  # the link is moved, not what it points to
        layout, named = find_run(path.parent), path.parent.resolve() / path.name
    else:
        layout, named = find_run(path), path.resolve()
    inside = named.relative_to(layout.root)
    _check_place(path, inside.parts)
    # The receipt goes first: from then on the record is not there for any reader.
    sources = [file for file in with_receipt(inside) if os.path.lexists(layout.root / file)]
    if not sources:
        raise MissingFileError(f"{path}: not there, so there is nothing to move")
    return [set_aside(layout.root / source, layout.quarantine / source) for source in sources]


def quarantine_remote(url: str) -> list[str]:
    """Do the same with a file or folder of a run on object storage; return the new URLs."""
    run, place = split_url(url)
    _check_place(url, tuple(place.split("/")) if place else ())
    return [f"{run}/{name}" for name in open_remote(run).quarantine(place)]


def _check_place(named: object, parts: tuple[str, ...]) -> None:
    if not parts:
        raise ConfigError(f"{named}: is a whole run; name the damaged file or folder in it")
    if parts[0] == "quarantine":
        raise ConfigError(f"{named}: is in quarantine already")
