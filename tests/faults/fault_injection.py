"""Faults that a command meets: what the system does to a process, at one of its steps on the disk or to its clock."""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SYSTEM_CALLS = ("mkdir", "link", "replace", "rename", "fsync", "unlink")
NAMINGS = ("link", "replace", "rename")
Event = Literal["killed", "interrupted", "held", "disk full", "read-only"]


@dataclass(frozen=True)
class StepFault:
    """Something that happens right before a process's `step`-th step, from 1, on the files of a run.

    Steps are the making of a folder, the opening of a file to write, and flushing, naming and unnaming one.
    """

    root: Path
    step: int
    event: Event
    """A disk stays full, or read-only, from that step on; a full one still unnames files."""

    def install(self, signs: Path) -> None:
        """Make this process meet the fault, and say so in `signs`/met; `signs`/go lets a held one go on."""
        counter, lock = itertools.count(1), threading.Lock()

        def meet(call: str) -> None:
            with lock:
                step = next(counter)
            self._happen(call, step, signs)

        for call in SYSTEM_CALLS:
            setattr(os, call, self._before(getattr(os, call), call, meet))
        io.open = builtins.open = self._before_writing(io.open, meet)

    def _happen(self, call: str, step: int, signs: Path) -> None:
        code = {"disk full": errno.ENOSPC, "read-only": errno.EROFS}.get(self.event)
        if step < self.step or (step > self.step and code is None) or (code == errno.ENOSPC and call == "unlink"):
            return
        os.close(os.open(signs / "met", os.O_CREAT))
        if code is not None:
            raise OSError(code, os.strerror(code))
        if self.event == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.event == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            while not (signs / "go").exists():
                time.sleep(0.002)

    def _before(self, function: Callable[..., Any], call: str, meet: Callable[[str], None]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if call == "fsync" or any(self._concerns(argument) for argument in arguments):
                meet(call)
            return function(*arguments, **options)

        return step

    def _before_writing(self, function: Callable[..., Any], meet: Callable[[str], None]) -> Callable[..., Any]:
        def step(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if self._concerns(file) and set(mode) & set("xwa+"):
                meet("open")
            return function(file, mode, *arguments, **options)

        return step

    def _concerns(self, argument: object) -> bool:
        return isinstance(argument, str | os.PathLike) and Path(argument).is_relative_to(self.root)


@dataclass(frozen=True)
class SkewedClock:
    """A clock that jumps by up to a year at each look, back as well as forth."""

    seed: int

    def install(self, signs: Path) -> None:
        """Make this process read that clock."""
        jumps, clock = random.Random(self.seed), time.time  # noqa: S311
        time.time = lambda: clock() + jumps.uniform(-3e7, 3e7)
        time.time_ns = lambda: int(time.time() * 1e9)


@dataclass(frozen=True)
class Namings:
    """No fault: a list of what this process gives a name in a run, one line each."""

    root: Path

    def install(self, signs: Path) -> None:
        """Make this process write the list `signs`/named."""
        log = os.open(signs / "named", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def written_down(function: Callable[..., Any]) -> Callable[..., Any]:
            def name(source: Any, target: Any, *arguments: Any, **options: Any) -> Any:
                result = function(source, target, *arguments, **options)
                if Path(target).is_relative_to(self.root):
                    os.write(log, f"{Path(target).relative_to(self.root)}\n".encode())
                return result

            return name

        for call in NAMINGS:
            setattr(os, call, written_down(getattr(os, call)))


Fault = StepFault | SkewedClock | Namings


def run_command(arguments: Sequence[str], folder: Path, faults: Sequence[Fault]) -> None:
    """Run `rlcm ARGUMENTS` in this process, a forked one, writing `out` and `err` into a folder."""
    if "warm_commands" not in sys.modules:
        raise RuntimeError("the fork server has not preloaded warm_commands")
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), stream)
    from rlcm_cli.cli.app import main

    for fault in faults:
        fault.install(folder)
    main(arguments)
