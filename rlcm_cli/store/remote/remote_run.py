"""A run directory on object storage, worked on through its stage.

The names are those of `RunLayout`. What is there is decided by markers: `config.json`, a manifest, a record's receipt,
a checkpoint's `complete.json`, each published after its data and only where none is. A marker of the store is always
right: a local one that differs has lost the race against another worker, one that was up there and no longer is was
pruned or put into quarantine, one that was never up there waits to be published. A listing only says where to look,
since stores may list late: which shards there are is the manifest's to say, and the newest checkpoint is looked for
beyond the last one listed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rlcm_cli.errors import CorruptFileError, ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import publish_folder, remove_folder, replace_bytes
from rlcm_cli.store.checkpoint import MARKER_FILE, damaged_files, parse_marker
from rlcm_cli.store.layout import RunLayout, receipt_path, with_receipt
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.remote.objects import ObjectStore, check_url, open_store
from rlcm_cli.store.remote.stage import Stage, open_stage
from rlcm_cli.store.shards import Receipt, read_receipt

DOWNLOADS = 3
"""How often a file is fetched that does not fit its digest."""


@dataclass(frozen=True)
class RemoteRun:
    """A run in a store, and its local stage."""

    store: ObjectStore
    stage: Stage

    @property
    def layout(self) -> RunLayout:
        """The stage as a run directory."""
        return self.stage.layout

    def agree(self, names: Iterable[str]) -> list[str]:
        """Make the markers of the stage those of the store; return the names that the store has.

        Those that were never published stay as they are.
        """
        found = self.store.read_all(names)
        for name, content in found.items():
            if content is None:
                if self.stage.synced(name):
                    self.drop(name)
            elif self.stage.read(name) != content:
                self.drop(name)
                replace_bytes(self.stage.path(name), content)
                self.stage.note(name, content)
            else:
                self.stage.note(name, content)
        return [name for name, content in found.items() if content is not None]

    def drop(self, marker: str) -> None:
        """Remove a marker and what it stands for from the stage."""
        path = self.stage.path(marker)
        path.unlink(missing_ok=True)
        self.stage.forget(marker)
        if path.name == "manifest.json" and path.parent.is_dir():
            shutil.rmtree(self.stage.ledger / self.stage.name(path.parent), ignore_errors=True)
            remove_folder(path.parent)
        else:
            path.with_suffix(".safetensors").unlink(missing_ok=True)

    def fetch_config(self) -> None:
        """Fetch the configuration, and the prompts that the run began with."""
        self.agree(["inputs.json", "config.json"])

    def fetch_checkpoints(self) -> int | None:
        """Make a folder for each checkpoint in the stage, empty but for those fetched; return the newest.

        None: the run has no checkpoint in the store.
        """
        listed = {int(name) for name in self.store.folders("checkpoints") if name.isdecimal()}
        # A folder without its marker is being published, or its trainer died.
        newest = next((number for number in sorted(listed, reverse=True) if self._has_checkpoint(number)), -1)
        while self._has_checkpoint(newest + 1):
            newest += 1
        for number in self.layout.checkpoints():
            known_above = number == newest or number in listed
            if (number > newest or not known_above) and not self._has_checkpoint(number) and self._is_old(number):
                self._drop_checkpoint(number)
        for number in {*listed, newest} if newest >= 0 else ():
            if number <= newest:
                self.layout.checkpoint(number).mkdir(parents=True, exist_ok=True)
        return newest if newest >= 0 else None

    def fetch_checkpoint(self, number: int) -> None:
        """Fetch a checkpoint, unless it is here or there is none. Raises `CorruptFileError`."""
        name = f"{self._checkpoint(number)}/{MARKER_FILE}"
        content = self.store.read(name)
        if content is None:
            return
        folder = self.layout.checkpoint(number)
        if self.stage.read(name) != content:
            if folder.is_dir():
                remove_folder(folder)
            with publish_folder(folder) as temporary:
                self._fetch_folder(number, content, temporary)
        self.stage.note(name, content)

    def fetch_records(self, records: Iterable[Path], wanted: Callable[[Path], bool] = lambda _: True) -> None:
        """Fetch the receipts of records, of the stage's paths, and the data of those that are wanted.

        Raises `CorruptFileError` for a record that does not fit its receipt.
        """
        here = {receipt_path(record): record for record in records}
        published = self.agree(self.stage.name(receipt) for receipt in here)
        for name in published:
            record = here[self.stage.path(name)]
            if wanted(record) and not (record.exists() and record.stat().st_size == read_receipt(record).bytes):
                self.fetch_data(record)

    def fetch_data(self, record: Path) -> None:
        """Fetch a record whose receipt is here; a pruned one stays away."""
        receipt = read_receipt(record)
        name = self.stage.name(record)
        for _ in range(DOWNLOADS):
            if not self.store.download(name, record):
                return
            if fits(record, receipt):
                return
        size = record.stat().st_size
        record.unlink()
        fault = (
            f"{size} of {receipt.bytes} bytes" if size != receipt.bytes else "another SHA-256 than its receipt says"
        )
        raise CorruptFileError(f"{record}: has {fault}, so its upload failed or it was damaged; {_remedy(record)}")

    def fetch_rollout(self, iteration: int, wanted: Callable[[int], bool]) -> RolloutManifest | None:
        """Fetch an iteration's plan, its receipts, and the shards whose numbers are wanted; None: no such plan."""
        self.agree([self.stage.name(self.layout.manifest(iteration))])
        if not self.layout.manifest(iteration).exists():
            return None
        manifest = read_manifest(self.layout.manifest(iteration))
        count = len(manifest.shards)
        shards = {self.layout.shard(iteration, number, count): number for number in range(count)}
        self.fetch_records(shards, lambda record: wanted(shards[record]))
        return manifest

    def fetch_rewards(
        self, manifest: RolloutManifest, directories: Iterable[str], wanted: Callable[[int], bool]
    ) -> None:
        """Fetch the receipts of an iteration's rewards, and those whose shards' numbers are wanted."""
        count, iteration = len(manifest.shards), manifest.iteration
        records = {
            self.layout.reward_shard(iteration, directory, number, count): number
            for directory in directories
            for number in range(count)
        }
        self.fetch_records(records, lambda record: wanted(records[record]))

    def fetch_files(self, paths: Iterable[Path]) -> None:
        """Fetch small files that belong to no record, as the store has them."""
        for name, content in self.store.read_all(self.stage.name(path) for path in paths).items():
            if content is not None:
                if self.stage.read(name) != content:
                    replace_bytes(self.stage.path(name), content)
                self.stage.note(name, content)

    def fetch_path(self, name: str) -> Path:
        """Fetch a checkpoint, a file of one, or a record; return its local path, where there may be nothing."""
        checkpoint = re.fullmatch(r"checkpoints/(\d+)(/.+)?", name)
        if checkpoint:
            self.fetch_checkpoint(int(checkpoint[1]))
        elif name.endswith(".safetensors"):
            self.fetch_records([self.stage.path(name)])
        return self.stage.path(name)

    def repair_uploads(self, records: Iterable[Path]) -> None:
        """Upload again what was cut in the store and is whole here.

        Raises `CorruptFileError` for what is cut there and not here.
        """
        published = [record for record in records if receipt_path(record).exists()]
        if not published:
            return
        listed = self.store.sizes(self.stage.name(published[0].parent))
        for record in published:
            receipt, name = read_receipt(record), self.stage.name(record)
            if listed.get(name) == receipt.bytes or not self.stage.is_synced(self.stage.name(receipt_path(record))):
                continue
            size = self.store.size(name)  # a listing may be late
            if size == receipt.bytes:
                continue
            if not (record.exists() and fits(record, receipt)):
                fault = "is gone" if size is None else f"has {size} of {receipt.bytes} bytes"
                raise CorruptFileError(f"{record}: {fault}; {_remedy(record)}")
            self.store.replace(name, record)

    def remove_checkpoint(self, number: int) -> None:
        """Remove a checkpoint from the store; its marker goes first, so that no reader sees a part of it."""
        folder = self._checkpoint(number)
        for name in dict.fromkeys([f"{folder}/{MARKER_FILE}", *self.store.sizes(folder)]):
            self.store.remove(name)
        self.stage.forget(f"{folder}/{MARKER_FILE}")

    def quarantine(self, place: str) -> list[str]:
        """Move a file or folder, with its receipt, into the run's `quarantine/`; return the new names.

        Raises `MissingFileError`.
        """
        below = sorted(name for name in self.store.sizes(place) if name != place)
        # The marker goes first: from then on what it stands for is not there for any reader.
        below.sort(key=lambda name: PurePosixPath(name).name not in (MARKER_FILE, "manifest.json"))
        moved = []
        taken = set(self.store.sizes("quarantine"))
        for name in [*below, *_record_names(place)]:
            target, attempt = f"quarantine/{name}", 0
            while target in taken:
                attempt += 1
                target = f"quarantine/{name}.{attempt}"
            if self.store.move(name, target):
                moved.append(target)
        if not moved:
            raise MissingFileError(f"{self.store.url}/{place}: not there, so there is nothing to move")
        self._forget_below(place)
        return moved

    def _forget_below(self, place: str) -> None:
        for name in _record_names(place):
            for folder in (self.layout.root, self.stage.ledger):
                path = folder / name
                if path.is_dir():
                    remove_folder(path)
                else:
                    path.unlink(missing_ok=True)

    def _checkpoint(self, number: int) -> str:
        return self.stage.name(self.layout.checkpoint(number))

    def _has_checkpoint(self, number: int) -> bool:
        return self.store.read(f"{self._checkpoint(number)}/{MARKER_FILE}") is not None

    def _is_old(self, number: int) -> bool:
        """Return whether a checkpoint of the stage was in the store once, or is an empty folder here."""
        name = f"{self._checkpoint(number)}/{MARKER_FILE}"
        return self.stage.synced(name) is not None or not self.stage.path(name).exists()

    def _drop_checkpoint(self, number: int) -> None:
        remove_folder(self.layout.checkpoint(number))
        self.stage.forget(f"{self._checkpoint(number)}/{MARKER_FILE}")

    def _fetch_folder(self, number: int, marker: bytes, folder: Path) -> None:
        place = self.layout.checkpoint(number)
        names = list(parse_marker(marker, place).files)
        (folder / MARKER_FILE).write_bytes(marker)
        damaged = names
        for _ in range(DOWNLOADS):
            for name in damaged:
                self.store.download(f"{self._checkpoint(number)}/{name}", folder / name)
            damaged = damaged_files(folder)
            if not damaged:
                return
        raise CorruptFileError(
            f"{place / damaged[0]}: is not the file that was published; {REMEDY.format(path=place)}"
        )


def open_remote(url: str) -> RemoteRun:
    """Open the run at a URL; there may be none yet. Raises `ConfigError`."""
    store = open_store(url)
    return RemoteRun(store, open_stage(store.url))


def fetch_adapter(url: str) -> Path:
    """Fetch the LoRA of a run (its newest checkpoint), a checkpoint or a file; return the local path.

    There may be nothing under that path. Raises `ConfigError`, `CorruptFileError` or `RemoteStoreError`.
    """
    try:
        run, place = split_url(url)
    except ForeignFileError:  # a file by itself
        folder, _, name = check_url(url).rpartition("/")
        remote = open_remote(folder)
        remote.store.download(name, remote.stage.path(name))
        return remote.stage.path(name)
    remote = open_remote(run)
    with remote.stage.lock():
        remote.fetch_config()
        if place:
            return remote.fetch_path(place)
        newest = remote.fetch_checkpoints()
        if newest is not None:
            remote.fetch_checkpoint(newest)
        return remote.layout.root


def fits(record: Path, receipt: Receipt) -> bool:
    """Return whether a record is the one that a receipt stands for."""
    if record.stat().st_size != receipt.bytes:
        return False
    with record.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == receipt.sha256


def split_url(url: str) -> tuple[str, str]:
    """Split the URL of a file or folder of a run: (run, name in it); the name of the run itself is empty.

    Raises `ForeignFileError` where no run lies there.
    """
    store = open_store(url)
    protocol, _, path = store.url.partition("://")
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        run = f"{protocol}://{'/'.join(parts[:count])}"
        if open_store(run).read("config.json") is not None:
            return run, "/".join(parts[count:])
    raise ForeignFileError(f"{url}: lies in no run (no config.json in any folder above it)")


def _remedy(record: Path) -> str:
    return REMEDY.format(path=record)


def _record_names(place: str) -> list[str]:
    return [path.as_posix() for path in with_receipt(PurePosixPath(place))]
