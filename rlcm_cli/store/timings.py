"""How long the phases of an iteration took, on whatever machines: one small file a shard, which no phase relies on."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

from rlcm_cli.errors import MissingFileError
from rlcm_cli.store.atomic import publish_bytes, replace_bytes
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.shards import read_json


@contextlib.contextmanager
def timing(layout: RunLayout, iteration: int, phase: str, shard: int) -> Iterator[None]:
    """Write down what the block takes: seconds on the clock, and of this process on all processors.

    The first time counts: a rollout may be scored with other rewards later.
    """
    clock, processor = time.perf_counter(), time.process_time()
    yield
    record = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    publish_bytes(layout.timing(iteration, phase, shard), json.dumps(record).encode())


def note_planned(layout: RunLayout, iteration: int, iterations: int) -> None:
    """Write down how many iterations a loop wants in all that goes on with an iteration, for those who watch it."""
    replace_bytes(layout.planned(iteration), json.dumps({"iterations": iterations}).encode())


def read_planned(layout: RunLayout, iteration: int) -> int | None:
    """Read how many iterations the newest loop wants that went on with an iteration up to this one; None: unknown."""
    for number in range(iteration, -1, -1):
        with contextlib.suppress(MissingFileError):
            wanted = read_json(layout.planned(number)).get("iterations")
            return wanted if isinstance(wanted, int) else None
    return None


def read_timings(layout: RunLayout, iteration: int, phase: str, shards: int) -> list[dict[str, float]]:
    """Read the `seconds` and `cpu_seconds` of each shard; empty where those of one are not there."""
    files = [layout.timing(iteration, phase, shard) for shard in range(shards)]
    if not all(file.exists() for file in files):
        return []
    records = [read_json(file) for file in files]
    return [{key: float(record[key]) for key in ("seconds", "cpu_seconds")} for record in records]
