"""Processes forked from a server that has imported everything: they start at once, not after seconds of imports."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 280
"""Seconds after which a process counts as hanging."""


@functools.cache
def fork_server() -> multiprocessing.context.ForkServerContext:
    """Start the server, or return the one that runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "warm_commands"])
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), before.get("PYTHONPATH", "")])
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    status: int
    """Exit status; −N where signal N killed it."""
    out: str
    err: str


def launch(script: Path, arguments: Sequence[object], folder: Path) -> Finished:
    """Run a script in a process, and wait for it. Its output goes to a new `folder`."""
    return _finish(_start(script, arguments, folder, os.environ), folder)


def launch_together(
    script: Path, arguments: Sequence[object], folder: Path, environment: Mapping[str, str] | None = None
) -> list[Finished]:
    """Run a script in two processes that know of each other as those of a launcher do, and wait for both.

    Their output goes to a new `folder`; `environment` is added to this process's own.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    outputs = [folder / f"rank-{rank}" for rank in range(2)]
    processes = []
    for rank in range(2):
        own = {**os.environ, **(environment or {}), **job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(_start(script, arguments, outputs[rank], own))
    return [_finish(process, output) for process, output in zip(processes, outputs, strict=True)]


def _start(
    script: Path, arguments: Sequence[object], outputs: Path, environment: Mapping[str, str]
) -> multiprocessing.process.BaseProcess:
    outputs.mkdir(parents=True)
    words = [str(argument) for argument in arguments]
    process = fork_server().Process(target=_run_script, args=(script, words, dict(environment), outputs))
    process.start()
    return process


def _run_script(script: Path, words: Sequence[str], environment: Mapping[str, str], outputs: Path) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path = [str(script), *words], [str(script.parent), *sys.path]
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _finish(process: multiprocessing.process.BaseProcess, outputs: Path) -> Finished:
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"hangs: {(outputs / 'err').read_text()}")
    return Finished(process.exitcode, (outputs / "out").read_text(), (outputs / "err").read_text())
