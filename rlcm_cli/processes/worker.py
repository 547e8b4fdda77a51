"""The share of one of several processes in the shards of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlcm_cli.errors import ConfigError


@dataclass(frozen=True)
class Worker:
    """The share of one of several processes: shards k with k mod `count` = `index`."""

    index: int = 0
    count: int = 1

    def takes(self, shard: int) -> bool:
        """Return whether a shard is this worker's."""
        return shard % self.count == self.index


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether torchrun or accelerate started this process together with others, to work as one job."""
    contract = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return all(name in environment for name in contract) and environment["WORLD_SIZE"] != "1"


def parse_worker(text: str | None, environment: Mapping[str, str] = os.environ) -> Worker:
    """Read `K/N` (K from 0), or `auto`: RANK and WORLD_SIZE, else Slurm's variables.

    Under torchrun, `auto` is the whole: the processes of a job divide by themselves what is the job's.

    Raises `ConfigError`.
    """
    if text is None:
        return Worker()
    if text == "auto":
        if is_launched(environment):
            return Worker()
        for index, count in (
            ("RANK", "WORLD_SIZE"),
            ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
        ):
            if index in environment and count in environment:
                if index == "SLURM_ARRAY_TASK_ID" and "SLURM_ARRAY_TASK_MIN" in environment:
                    return _array_worker(environment)
                text = f"{environment[index]}/{environment[count]}"
                break
        else:
            raise ConfigError(
                "--worker auto: none of RANK, SLURM_ARRAY_TASK_ID and SLURM_PROCID is set; start it with torchrun "
                "or Slurm, or give --worker K/N"
            )
    index_text, slash, count_text = text.partition("/")
    if not (slash and index_text.isdecimal() and count_text.isdecimal() and int(index_text) < int(count_text)):
        raise ConfigError(f"--worker {text}: write K/N with K from 0 to N − 1, for example --worker 0/4")
    return Worker(int(index_text), int(count_text))


def _array_worker(environment: Mapping[str, str]) -> Worker:
    """Return the share of a task of a Slurm array, whose numbers need neither start at 0 nor follow one another."""
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    told = {
        name: environment[f"SLURM_ARRAY_TASK_{name}"] for name in names if f"SLURM_ARRAY_TASK_{name}" in environment
    }
    shown = ", ".join(f"SLURM_ARRAY_TASK_{name}={value}" for name, value in told.items())
    if not all(value.isdecimal() for value in told.values()):
        raise ConfigError(f"--worker auto: {shown}: these are not numbers; give --worker K/N")
    numbers = {name: int(value) for name, value in told.items()}
    count, first, step = numbers["COUNT"], numbers["MIN"], numbers.get("STEP", 1)
    last = numbers.get("MAX", first + (count - 1) * step)
    index, beside = divmod(numbers["ID"] - first, step) if step else (0, 1)
    # Of an array such as 1,3,7 the variables do not say which task is which.
    if beside or not 0 <= index < count or last - first != (count - 1) * step:
        raise ConfigError(
            f"--worker auto: {shown} do not number the tasks evenly; use an array such as "
            f"--array=0-{max(count, 1) - 1}, or give --worker K/N"
        )
    return Worker(index, count)
