"""The stage of a remote run: a folder of this machine with the files that are in use, and what of them is up there.

A stage is a run directory like any other, only that records and checkpoints may be absent that nothing here has asked
for: a checkpoint that was not fetched is an empty folder. Losing a stage loses time, and what was not uploaded yet.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from rlcm_cli.core.digests import sha256
from rlcm_cli.store.atomic import TEMPORARY_SUFFIX, replace_bytes
from rlcm_cli.store.cache import stages_folder
from rlcm_cli.store.layout import RunLayout


@dataclass(frozen=True)
class Stage:
    """Local files of a remote run, and a ledger of those that the store is known to hold."""

    layout: RunLayout
    ledger: Path
    """Beside the run: `NAME` → the SHA-256 of what the store holds under that name."""

    def lock(self) -> AbstractContextManager[object]:
        """Keep other processes of this machine from fetching and publishing: they would do the same work again."""
        return FileLock(self.ledger.with_name(".lock"))

    def path(self, name: str) -> Path:
        """Return the local place of a file."""
        return self.layout.root / name

    def name(self, path: Path) -> str:
        """Return the name of a local file."""
        return path.relative_to(self.layout.root).as_posix()

    def read(self, name: str) -> bytes | None:
        """Read a local file; None: there is none."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def is_synced(self, name: str) -> bool:
        """Return whether the store holds a file as it is here."""
        content = self.read(name)
        return content is not None and self.synced(name) == sha256(content)

    def synced(self, name: str) -> str | None:
        """Return the digest of what the store was last known to hold under a name."""
        try:
            return (self.ledger / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def note(self, name: str, content: bytes) -> None:
        """Remember what the store holds."""
        replace_bytes(self.ledger / name, sha256(content).encode())

    def forget(self, name: str) -> None:
        """Remember that the store holds nothing."""
        (self.ledger / name).unlink(missing_ok=True)

    def names(self, pattern: str = "**/*") -> list[str]:
        """List local files but those in quarantine and those that are being written."""
        while True:
            try:
                return sorted(
                    self.name(file)
                    for file in self.layout.root.glob(pattern)
                    if file.is_file() and not _is_private(PurePosixPath(self.name(file)))
                )
            except FileNotFoundError:  # a folder that was being written got its name while it was listed
                continue


def open_stage(url: str) -> Stage:
    """Open, and make where there is none, the stage of a run's URL."""
    folder = stages_folder().absolute() / sha256(url.encode())[:16]
    root = folder / PurePosixPath(url).name
    root.mkdir(parents=True, exist_ok=True)
    # The other is next to the run, and named so that no run's URL can end like it.
    return Stage(RunLayout(root), folder / ".synced")


def _is_private(name: PurePosixPath) -> bool:
    return name.parts[0] == "quarantine" or any(part.endswith(TEMPORARY_SUFFIX) for part in name.parts)
