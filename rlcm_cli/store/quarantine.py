"""Moving a damaged file out of the way, so that its phase makes it again."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.remote import open_remote, split_url


def find_run(path: Path) -> RunLayout:
    """Find the run that a path lies in. Raises `ConfigError` where it lies in none."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if (folder / "config.json").is_file() and ((folder / "checkpoints").is_dir() or folder == resolved):
            return RunLayout(folder)
    raise ConfigError(f"{path}: lies in no run directory (no config.json in any folder above it)")


def quarantine(path: Path) -> list[Path]:
    """Move a file or folder of a run, with its receipt, into the run's `quarantine/`; give the new places.

    Nothing is deleted and nothing overwritten. Raises `ConfigError` or `MissingFileError`.
    """
    layout = find_run(path)
    resolved = path.resolve()
    _check_place(path, resolved.relative_to(layout.root).parts)
    # The receipt goes first: from then on the record is not there for any reader.
    sources = [file for file in (receipt_path(resolved), resolved) if file.exists()]
    if not sources:
        raise MissingFileError(f"{path}: not there, so there is nothing to move")
    moved = []
    for source in dict.fromkeys(sources):
        target = layout.quarantine / source.relative_to(layout.root)
        attempt = 0
        while target.exists():
            attempt += 1
            target = target.with_name(f"{source.name}.{attempt}")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        moved.append(target)
    return moved


def quarantine_remote(url: str) -> list[str]:
    """Do the same with a file or folder of a run on object storage; give the new URLs."""
    run, place = split_url(url)
    _check_place(url, tuple(place.split("/")) if place else ())
    return [f"{run}/{name}" for name in open_remote(run).quarantine(place)]


def _check_place(named: object, parts: tuple[str, ...]) -> None:
    if not parts:
        raise ConfigError(f"{named}: is a whole run; name the damaged file or folder in it")
    if parts[0] == "quarantine":
        raise ConfigError(f"{named}: is in quarantine already")
