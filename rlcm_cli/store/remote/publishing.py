"""Uploading what phases have published into the stage of a remote run, so that other machines see whole files only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from rlcm_cli.errors import CorruptFileError, ForeignFileError, StoreError
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.checkpoint import MARKER_FILE, damaged_files, parse_marker
from rlcm_cli.store.layout import PLANNED_FILE, receipt_path
from rlcm_cli.store.reading import REMEDY
from rlcm_cli.store.remote.remote_run import RemoteRun, fits
from rlcm_cli.store.shards import encode_receipt, read_receipt, restore_receipt

PAUSE = 0.5
"""Seconds between two looks for new files, at least."""
PAUSES = 4
"""Times that a look took, which are waited before the next, at least."""
ONCE = ("timings", "rewards", "votes")
"""Folders of files that belong to no record and are published once."""


@dataclass
class Publisher:
    """Uploads what is new in a stage."""

    remote: RemoteRun
    _settled: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Files that need no second look: time and size."""

    def publish(self) -> None:
        """Upload what the store lacks; where another worker was first, take over its version.

        Data go before their marker. Raises `ForeignFileError` for a plan that differs from the store's,
        `CorruptFileError` for a file that was damaged here, `RemoteStoreError`.
        """
        with self.remote.stage.lock():
            self._publish(self.remote.stage.names())

    def _publish(self, names: list[str]) -> None:
        for publish, chosen in (
            (self._publish_plain, [name for name in ("inputs.json", "config.json") if name in names]),
            (self._publish_checkpoint, _checkpoint_markers(names)),
            (self._publish_plain, [name for name in names if name.endswith("/manifest.json")]),
            (self._publish_record, [n for n in names if _is_receipt(n)]),
            (self._put_file, [name for name in names if _is_loose(name)]),
        ):
            for name in chosen:
                self._unless_settled(name, publish)

    def _unless_settled(self, name: str, publish: Callable[[str], None]) -> None:
        stage = self.remote.stage
        path = stage.path(name)
        data = path.with_suffix(".safetensors") if _is_receipt(name) else path
        try:
            status = path.stat()
            state = (status.st_mtime_ns, status.st_size)
            if self._settled.get(name) == state:
                return
            if not stage.is_synced(name):
                publish(name)
        except (FileNotFoundError, StoreError):
            if data.exists():
                raise
            return  # pruned meanwhile; of a record the receipt stays, and has its turn again
        self._settled[name] = state

    def _publish_plain(self, name: str) -> None:
        """Publish a marker without data: whoever is first has made the configuration or plan."""
        stage, store = self.remote.stage, self.remote.store
        content = stage.path(name).read_bytes()
        if not store.create(name, content):
            winner = store.read(name)
            if winner is not None and winner != content:
                self.remote.agree([name])
                if name.endswith("/manifest.json"):
                    raise ForeignFileError(
                        f"{stage.path(name)}: another worker has published another plan there; give all workers the "
                        "same model, configuration and version, and run the same command again"
                    )
                return
        stage.note(name, content)

    def _publish_record(self, name: str) -> None:
        stage, store = self.remote.stage, self.remote.store
        record = stage.path(name).with_suffix(".safetensors")
        content = stage.path(name).read_bytes()
        theirs = store.read(name)
        if theirs is None:
            if record.exists():  # else it was pruned before its turn came, and only a receipt says so
                self._upload_data(name)
            content = stage.path(name).read_bytes()
            if not store.create(name, content):
                theirs = store.read(name)
        if theirs is not None and theirs != content:
            self.remote.agree([name])
            self.remote.fetch_data(record)
        else:
            stage.note(name, content)

    def _upload_data(self, receipt_name: str) -> None:
        """Upload the data of a record, or take over data that another worker has left without their receipt."""
        stage, store = self.remote.stage, self.remote.store
        record = stage.path(receipt_name).with_suffix(".safetensors")
        name, receipt = stage.name(record), read_receipt(record)
        if not fits(record, receipt):
            raise CorruptFileError(f"{record}: is damaged in the stage; {REMEDY.format(path=record)}")
        if store.create(name, record):
            return
        # Its writer has died, or publishes the receipt in a moment; made from the data, it is the same in any case.
        theirs = record.with_name(f".{record.name}.theirs.tmp")
        try:
            store.download(name, theirs)
            found, own = (restore_receipt(file) if file.exists() else None for file in (theirs, record))
            if found is None or own is None or found[1] != own[1]:
                store.replace(name, record)  # cut, or of another plan, and without a receipt: not there
            elif found[0] != receipt:
                theirs.replace(record)
                replace_bytes(receipt_path(record), encode_receipt(found[0]))
        finally:
            theirs.unlink(missing_ok=True)

    def _publish_checkpoint(self, name: str) -> None:
        """Publish the metrics that led to a checkpoint, its files, and its marker."""
        stage, store, layout = self.remote.stage, self.remote.store, self.remote.layout
        marker = stage.path(name)
        content, folder = marker.read_bytes(), PurePosixPath(name).parent
        number = int(folder.name)
        if store.read(name) is None:
            if damaged_files(marker.parent):
                raise CorruptFileError(
                    f"{marker.parent}: is damaged in the stage; {REMEDY.format(path=marker.parent)}"
                )
            metrics = layout.metrics(number)
            if metrics.exists():
                self._put_file(stage.name(metrics))
            for file in parse_marker(content, marker.parent).files:
                store.replace(f"{folder}/{file}", marker.parent / file)
            store.create(name, content)
        self.remote.fetch_checkpoint(number)  # ours, or that of a trainer who was first
        self.remote.fetch_files([layout.metrics(number)])

    def _put_file(self, name: str) -> None:
        """Put a file that belongs to no record: how long a phase took once, others as they are now."""
        stage, store = self.remote.stage, self.remote.store
        content = stage.path(name).read_bytes()
        if PurePosixPath(name).parts[0] in ONCE and stage.path(name).name != PLANNED_FILE:
            store.create(name, content)
        else:
            store.replace(name, content)
        stage.note(name, content)


class BackgroundPublisher:
    """Publishes in its own thread, as often as it is told to; several calls at once count as one."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="rlcm-publisher", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Have what is new published soon; raise what went wrong before."""
        if self._error is not None:
            raise self._error
        self._news.set()

    def stop(self) -> None:
        """Let the work in hand be finished, and end the thread."""
        self._stopping.set()
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            if self._stopping.is_set():
                return
            began = time.perf_counter()
            try:
                self._work()
            except Exception as error:  # for the caller of `notify`
                self._error = error
                return
            # A long run has many files, and looking for new ones takes the phase's processor.
            self._stopping.wait(max(PAUSE, PAUSES * (time.perf_counter() - began)))


@contextlib.contextmanager
def publishing(work: Callable[[], None]) -> Iterator[BackgroundPublisher]:
    """Publish in the background while the block runs; what is left at its end, the caller publishes."""
    background = BackgroundPublisher(work)
    try:
        yield background
    finally:
        background.stop()
    background.notify()


def _is_receipt(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.endswith(".json") and (
        (parts[0] == "rollouts" and parts[-1] != "manifest.json") or parts[0] == "evaluations"
    )


def _checkpoint_markers(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("checkpoints/") and name.endswith(f"/{MARKER_FILE}")]


def _is_loose(name: str) -> bool:
    """Return whether a file is bound to no marker, as metrics are to their checkpoint: timings, pictures, reports."""
    bound = ("rollouts", "checkpoints", "evaluations", "metrics", "config.json", "inputs.json")
    return PurePosixPath(name).parts[0] not in bound
