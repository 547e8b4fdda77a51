"""The processes of one job, that `torchrun` or `accelerate launch` started with the same command line.

They share the work and not the decisions: plans, minibatches and the split of shards are those of one process, each
does its part of them, and what the parts make is added up. So a result depends on the number of processes by the
rounding of that sum alone, and a run may go on with more or fewer of them. All read the run's files; where only one
may write, the leader does.

The launchers' contract is that of `torch.distributed` (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), so
that is what is used, and not accelerate's `PartialState`: it keeps its state for the whole process, and has one
backend where we need two, CPU tensors being exchanged by gloo on a machine with GPUs as well.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rlcm_cli.errors import ConfigError, WorkerLostError
from rlcm_cli.phases.events import Event, Warned
from rlcm_cli.phases.run import Worker, is_launched
from rlcm_cli.wording import count

PATIENCE = timedelta(hours=6)
"""How long a process waits for another: a slow judge may hold one up for hours. One that died is noticed at once."""
MEETING = timedelta(minutes=30)
"""How long the processes of a job wait for each other to start: a cluster may start them one by one."""
QUIET_MEETING = 15.0
"""Seconds after which a wait is told of where a launcher surely is; processes start at different speeds."""
UNSET = "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"
NOTHING_LOST = "run the same command again to go on, nothing is lost"


@dataclass(frozen=True)
class Team:
    """One of `size` processes, `rank` from 0. Of a single process every method gives back what it is given.

    What is sent must be sent by all, in the same order. Each method raises `WorkerLostError` where a process is
    gone.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process prints, and writes what only one may write."""
        return self.rank == 0

    def divide(self, share: Worker = Worker()) -> Worker:  # noqa: B008
        """Give the shards of this process among those of a job, which may be one of several jobs."""
        return Worker(share.index * self.size + self.rank, share.count * self.size)

    def part(self, count: int) -> range:
        """Give the items of this process among `count`: they follow one another, and the parts differ by one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of those of all processes, of equal shape and dtype; all get the same bytes."""
        if self.size == 1:
            return
        sent = tensor if tensor.is_cuda else tensor.cpu()  # neither backend knows MPS
        with _noticing_loss():
            dist.all_reduce(sent)
        tensor.copy_(sent)

    def gather(self, record: Mapping[str, float]) -> list[dict[str, float]]:
        """Give the records of all processes, by rank; their names may differ."""
        if self.size == 1:
            return [dict(record)]
        text = torch.frombuffer(bytearray(json.dumps(record), "utf-8"), dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(text)
        self.sum(lengths)
        texts = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
        texts[self.rank, : len(text)] = text
        self.sum(texts)
        return [
            json.loads(row[:length].numpy().tobytes()) for row, length in zip(texts, lengths.tolist(), strict=True)
        ]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.sum(torch.zeros(1))

    def leave(self) -> None:
        """End the connections, once nothing more is to be exchanged.

        After an error there is no need to: the process ends, and that is how the others learn of it.
        """
        if self.size > 1:
            dist.destroy_process_group()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def print_to_stderr(line: str) -> None:
    """Print a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)


def join_team(
    device: str,
    environment: Mapping[str, str] = os.environ,
    tell: Callable[[str], object] = print_to_stderr,
) -> Team:
    """Meet the other processes that the launcher started, if one did; each takes the GPU of its number.

    `device` is the configuration's. `tell` gets a line on what is waited for: nobody else may ever come, where the
    variables of a launcher are left over from another job. Raises `ConfigError` where there are fewer GPUs than
    processes on this machine, or one is named for all, and `WorkerLostError`.
    """
    if not is_launched(environment):
        return Team()
    own = int(environment["LOCAL_RANK"])
    kind, _, number = device.partition(":")
    backend = "gloo"
    if torch.cuda.is_available() and kind in ("auto", "cuda"):
        if number:
            raise ConfigError(
                f"--device {device}: is one GPU for {environment['WORLD_SIZE']} processes; leave it out, and each "
                "takes its own (CUDA_VISIBLE_DEVICES says which there are)"
            )
        if own >= torch.cuda.device_count():
            there = count(torch.cuda.device_count(), "GPU")
            raise ConfigError(
                f"the launcher starts process {own + 1} on a machine with {there}; start as many processes as there "
                "are GPUs, or use --device cpu"
            )
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    with _announcing(environment, tell):
        try:
            store, rank, size = next(rendezvous("env://", timeout=MEETING))
        except RuntimeError as error:
            raise WorkerLostError(f"{_describe_waiting(environment)}, {_describe_failure(error)}") from error
    with _noticing_loss():
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            backend, store=PrefixStore("rlcm", store), rank=rank, world_size=size, timeout=PATIENCE
        )
    # Only now: while it waits for the others inside torch, a handler of Python's would not be heard.
    signal.signal(signal.SIGTERM, _stop)
    return Team(dist.get_rank(), dist.get_world_size())


def check_team(team: Team, shards: int, environment: Mapping[str, str] = os.environ) -> Iterator[Event]:
    """Warn where processes that were asked for have nothing to do; `shards` are those of an iteration."""
    if shards < team.size:
        yield Warned(
            f"{team.size} processes share {count(shards, 'shard')} an iteration, so that "
            f"{team.size - shards} wait{'s' * (team.size - shards == 1)} while images are drawn and scored; start a "
            f"run with --set sample.shards={team.size} (a run keeps the shards that it began with)"
        )
    # With the option --cpu, accelerate starts one process, whatever --num_processes says, unless MPI starts more.
    if team.size == 1 and "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment:
        yield Warned(
            "`accelerate launch` starts a single process on a CPU, whatever --num_processes says; for several use "
            "`torchrun --nproc-per-node N -m -- rlcm_cli …`"
        )


def is_first_to_complain(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is the first of its job to ask: its error is what ended the others.

    The launcher keeps the count, for it outlives every process; where none can be asked, everybody is the first.
    """
    if not is_launched(environment):
        return True
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends who is ending already
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), timeout=timedelta(seconds=5)
        )
        return bool(store.add(f"rlcm/complaints/{attempt}", 1) == 1)
    except RuntimeError:
        return True


@contextmanager
def _announcing(environment: Mapping[str, str], tell: Callable[[str], object]) -> Iterator[None]:
    """Tell of the meeting while it lasts, and let Ctrl-C end it, which torch would not hear."""
    delay = QUIET_MEETING if "TORCHELASTIC_RUN_ID" in environment else 0.0
    line = f"{_describe_waiting(environment)}; if no launcher started it, stop it and {UNSET}"
    timer = threading.Timer(delay, tell, [line])
    timer.daemon = True
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _describe_waiting(environment: Mapping[str, str]) -> str:
    size, place = environment["WORLD_SIZE"], f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return f"this is process {environment['RANK']} of {size} of a launcher, and waits for the others at {place}"


def _describe_failure(error: RuntimeError) -> str:
    if "timed out" in str(error).lower():
        found = re.search(r"(\d+)/\d+ clients joined", str(error))
        came = f"{count(int(found[1]), 'process', 'processes')} came" if found else "nobody answered there"
        what = f"but within {MEETING.seconds // 60} minutes {came}"
    else:
        what = f"but cannot ({' '.join(str(error).split())[:200]})"
    return f"{what}; start all of them, or, where there is no launcher, {UNSET}"


@contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises for a closed connection, and when its time is up
        timed_out = "timed out" in str(error).lower()
        what = f"has not answered for {PATIENCE.seconds // 3600} hours" if timed_out else "is gone"
        raise WorkerLostError(
            f"a process of this job {what} (killed, out of memory, or stopped by an error of its own); {NOTHING_LOST}"
        ) from error


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise WorkerLostError(
        "this job is being stopped, since one of its processes is gone (killed, out of memory, or by an error of its "
        f"own) or the launcher was told to; {NOTHING_LOST}"
    )
