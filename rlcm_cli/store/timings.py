"""How long the phases of an iteration took, on whatever machines: one small file a shard, which no phase relies on."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rlcm_cli.errors import CorruptFileError, MissingFileError
from rlcm_cli.store.atomic import publish_bytes, replace_bytes
from rlcm_cli.store.identity import read_run_identity
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import Record, read_object

Ending = Literal["", "hacking", "flat"]
"""Why a loop ended before all its iterations were done: a reward was hacked, or the held-out one did not rise."""


class Planned(Record):
    """How many iterations a loop wants in all."""

    iterations: int = Field(ge=0)
    ended: Ending = ""


class Timing(Record):
    """What a phase took for a shard."""

    seconds: float = Field(ge=0, allow_inf_nan=False)
    cpu_seconds: float = Field(ge=0, allow_inf_nan=False)


@contextlib.contextmanager
def timing(layout: RunLayout, iteration: int, phase: str, shard: int) -> Iterator[None]:
    """Write down what the block takes: seconds on the clock, and of this process on all processors.

    The first time counts: a rollout may be scored with other rewards later.
    """
    clock, processor = time.perf_counter(), time.process_time()
    yield
    read_run_identity(layout)
    record = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    publish_bytes(layout.timing(iteration, phase, shard), json.dumps(record).encode())


def note_planned(layout: RunLayout, iteration: int, iterations: int, ended: Ending = "") -> None:
    """Write down how many iterations in all a loop wants that works on an iteration, for whoever watches it.

    `ended`: why it goes no further than this iteration.
    """
    planned = Planned(iterations=iterations, ended=ended)
    replace_bytes(layout.planned(iteration), planned.model_dump_json(exclude_defaults=True).encode())


def read_planned(layout: RunLayout, iteration: int) -> int | None:
    """Read how many iterations the newest loop wants that went on with an iteration up to this one; None: unknown."""
    named = (file.parent.name for file in (layout.root / "timings").glob("*/loop.json"))
    numbers = [int(name) for name in named if re.fullmatch(r"\d{6,9}", name, re.ASCII)]
    for number in sorted((number for number in numbers if number <= iteration), reverse=True):
        with contextlib.suppress(MissingFileError, CorruptFileError):
            return read_object(layout.planned(number), Planned, "number of iterations").iterations
    return None


def read_ending(layout: RunLayout, iteration: int) -> Ending:
    """Read why the newest loop ended before it began with an iteration; empty where it did not."""
    with contextlib.suppress(MissingFileError, CorruptFileError):
        return read_object(layout.planned(iteration), Planned, "number of iterations").ended
    return ""


def read_timings(layout: RunLayout, iteration: int, phase: str, shards: int) -> list[dict[str, float]]:
    """Read the `seconds` and `cpu_seconds` of each shard; empty where those of one are not there."""
    files = [layout.timing(iteration, phase, shard) for shard in range(shards)]
    if not all(file.exists() for file in files):
        return []
    advice = "remove it: nothing but the time that an iteration took is known from it"
    return [read_object(file, Timing, "timing", advice).model_dump() for file in files]
