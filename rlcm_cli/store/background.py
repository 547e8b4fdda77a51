"""Publication in the background: what was made is written, checksummed and flushed while the next is being made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

Publish = Callable[[], object]
"""Publishes one thing, whole or not at all."""


class BackgroundWriter:
    """Runs publications one after the other in its own thread; use `writing_behind`."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._last: Future[object] | None = None

    def submit(self, publish: Publish) -> None:
        """Have something published after all that came before; raise what went wrong with that.

        Waits for the one before, so that no more than one is held in memory.
        """
        self.wait()
        self._last = self._thread.submit(publish)

    def wait(self) -> None:
        """Wait until all is published; raise what went wrong."""
        if self._last is not None:
            self._last.result()


@contextlib.contextmanager
def writing_behind() -> Iterator[BackgroundWriter]:
    """Return a writer; at the end of the block all is published, also where the block raises."""
    with ThreadPoolExecutor(1, "rlcm-writer") as thread:
        writer = BackgroundWriter(thread)
        yield writer
        writer.wait()
