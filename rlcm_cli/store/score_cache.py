"""Scores that were given before, on this machine: a reward is not asked twice about the same image and prompt.

A table of the standard library's SQLite outside of any run, so that an interrupted scoring, another run or
another evaluation finds them. Losing it loses time and nothing else.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import xxhash
from torch import Tensor

from rlcm_cli.errors import StorageFullError
from rlcm_cli.store.cache import cache_folder

LOCK_SECONDS = 60
"""How long to wait for another process that writes."""


def default_cache() -> Path:
    """File of the cache of scores."""
    return cache_folder() / "scores.sqlite3"


def open_cache(*, wanted: bool = True) -> AbstractContextManager[ScoreCache | None]:
    """Open this machine's cache for a `with` block; None if it is not wanted."""
    return ScoreCache(default_cache()) if wanted else contextlib.nullcontext()


def digest_images(images: Tensor) -> list[bytes]:
    """Return the digest of each image's shape and pixels, of uint8 [B, 3, H, W].

    XXH3 (128 bit): a wrong hit by chance is out of the question, and it is eight times as fast as SHA-256.
    """
    digests = []
    for image in images.cpu().contiguous().numpy():
        digest = xxhash.xxh3_128(str(image.shape).encode())
        digest.update(image)
        digests.append(digest.digest())
    return digests


def score_keys(reward: str, prompts: Sequence[str], digests: Sequence[bytes]) -> list[bytes]:
    """Return the key of each image's score.

    Args:
        reward: What determines the values, such as digest and revision.
        prompts: B prompts.
        digests: B of `digest_images`.
    """
    return [
        xxhash.xxh3_128(f"{reward}\0{prompt}\0".encode() + digest).digest()
        for prompt, digest in zip(prompts, digests, strict=True)
    ]


class ScoreCache:
    """A table key → score, safe for several threads and processes of one machine.

    Raises `StorageFullError` where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # One transaction at a time: a connection is not made for several threads at once.
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
            self._use_write_ahead_log()
            # A score that a power failure loses is computed again.
            self._table.execute("PRAGMA synchronous=OFF")
            self._table.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL) WITHOUT ROWID")

    def _use_write_ahead_log(self) -> None:
        """Let readers and a writer work at once."""
        # SQLite does not wait for other processes here, which may be opening or closing the file at this moment.
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                self._table.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def look_up(self, keys: Sequence[bytes]) -> Tensor:
        """Return the known scores, float32 [B], NaN where there is none."""
        scores = torch.full((len(keys),), torch.nan)
        with self._lock, self._explained():
            for row, key in enumerate(keys):
                found = self._table.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
                if found:
                    scores[row] = found[0]
        return scores

    def remember(self, keys: Sequence[bytes], scores: Tensor) -> None:
        """Keep scores, float32 [B]."""
        with self._lock, self._explained(), self._table:
            self._table.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?)", zip(keys, scores.tolist(), strict=True)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageFullError(
                f"{self._path}: the cache of scores cannot be used ({error}); remove the file, set RLCM_CACHE to "
                "another folder, or score with --no-cache"
            ) from None
