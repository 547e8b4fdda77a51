"""How the processes of one job meet: what a launcher says of them, whom they wait for, and how they end."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from rlcm_cli.errors import ConfigError, WorkerLostError
from rlcm_cli.events import Event, Warned
from rlcm_cli.processes.job import Processes
from rlcm_cli.processes.noticing import NOTHING_LOST, PATIENCE, noticing_loss
from rlcm_cli.processes.worker import is_launched
from rlcm_cli.wording import count

MEETING = timedelta(minutes=30)
"""How long the processes of a job wait for each other to start: a cluster may start them one by one."""
QUIET_MEETING = 15.0
"""Seconds after which a wait is told of where a launcher surely is; processes start at different speeds."""
UNSET = "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"


def print_to_stderr(line: str) -> None:
    """Print a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)


def join_processes(
    device: str,
    environment: Mapping[str, str] = os.environ,
    tell: Callable[[str], object] = print_to_stderr,
) -> Processes:
    """Meet the other processes that the launcher started, if one did; each takes the GPU of its number.

    `device` is the configuration's. `tell` gets a line on what is waited for: nobody else may ever come, where the
    variables of a launcher are left over from another job. Raises `ConfigError` where there are fewer GPUs than
    processes on this machine, or one is named for all, and `WorkerLostError`.
    """
    if environment.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1"):
        raise ConfigError(
            "accelerate is configured for FSDP, which it would do to models that it is given, and it is given none; "
            "leave --use_fsdp out (or name a configuration without it by --config_file), and use --shard-weights"
        )
    if not is_launched(environment):
        return Processes()
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
    with noticing_loss():
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            backend, store=PrefixStore("rlcm", store), rank=rank, world_size=size, timeout=PATIENCE
        )
    # Only now: while it waits for the others inside torch, a handler of Python's would not be heard.
    signal.signal(signal.SIGTERM, _stop)
    return Processes(dist.get_rank(), dist.get_world_size())


def check_shares(processes: Processes, shards: int, environment: Mapping[str, str] = os.environ) -> Iterator[Event]:
    """Warn where processes that were asked for have nothing to do; `shards` are those of an iteration."""
    idle = processes.size - shards
    if idle > 0:
        yield Warned(
            f"{processes.size} processes share {count(shards, 'shard')} an iteration, so that "
            f"{idle} wait{'s' * (idle == 1)} while images are drawn and scored; start a "
            f"run with --set sample.shards={processes.size} (a run keeps the shards that it began with)"
        )
    # With the option --cpu, accelerate starts one process, whatever --num_processes says, unless MPI starts more.
    if processes.size == 1 and "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment:
        yield Warned(
            "`accelerate launch` starts a single process on a CPU, whatever --num_processes says; for several use "
            "`torchrun --nproc-per-node N -m -- rlcm_cli …`"
        )


def is_first_to_complain(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the first of its job to ask: its error is what ended the others.

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
    """Report the meeting while it lasts, and let Ctrl-C end it, which torch would not hear."""
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


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise WorkerLostError(
        "this job is being stopped, since one of its processes is gone (killed, out of memory, or by an error of its "
        f"own) or the launcher was told to; {NOTHING_LOST}"
    )
