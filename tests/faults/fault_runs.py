"""Runs of the tiny pipeline made by `rlcm` commands in forked processes, and what a fault must leave of them."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_injection import Event, Fault, StepFault, run_command
from fork_server import fork_server

from rlcm_cli.core.digests import canonical_json, sha256
from rlcm_cli.store.checkpoint import digest_safetensors
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.verification import verify_run

LONGEST = 120  # seconds that a command may take on a loaded machine
TIMES = ("sample_seconds", "score_seconds", "train_seconds", "cpu_seconds", "finished_at", "digest")
NOT_OF_THE_RUN = ("quarantine", "timings")
DERIVED = ("metrics", "metrics.jsonl", "rewards.png", "before_after.png")
SETTINGS = """
task = "compression"
[model]
name = {model}
[prompts]
source = "simple_animals"
[rewards]
compressibility = 1.0
[sample]
samples = 4
batch_size = 2
shards = 2
steps = 3
guidance_scale = 4.0
[train]
learning_rate = 1e-3
minibatch_size = 2
buffer_size = 4
min_count = 2
[lora]
rank = 2
alpha = 4
[evaluate]
prompts = 2
images_per_prompt = 1
[runtime]
iterations = 2
device = "cpu"
micro_batch_size = 8
"""
SEQUENCE = ("sample", "score", "train", "evaluate", "sample", "score", "train")
"""The commands of two iterations."""
ITERATION = range(4)
"""The places of the first iteration's in it."""
at_each_step = pytest.mark.parametrize(
    ("place", "every"),
    [
        pytest.param(1, 11, id="score, some steps"),
        pytest.param(0, 7, id="sample", marks=pytest.mark.slow),
        pytest.param(1, 1, id="score", marks=pytest.mark.slow),
        pytest.param(2, 4, id="train", marks=pytest.mark.slow),
        pytest.param(3, 1, id="evaluate", marks=pytest.mark.slow),
    ],
)
"""For a test that disturbs the command at a place before every so many of its steps.

A file is published in five steps or six: strides of another length come to all kinds of them.
"""

on_forking_systems = pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are forked")

KILLED = -signal.SIGKILL

_numbers = itertools.count()


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    """Exit status; −N where signal N killed it."""
    out: str
    err: str

    def line(self) -> str:
        """The only line of complaint."""
        (line,) = self.err.splitlines() or [""]
        assert line.startswith("rlcm: "), self
        return line


class Command:
    """`rlcm ARGUMENTS`, running in a process of its own."""

    def __init__(self, arguments: Sequence[object], folder: Path, *faults: Fault) -> None:
        self.folder = folder
        folder.mkdir()
        words = [str(argument) for argument in arguments]
        self._process = fork_server().Process(target=run_command, args=(words, folder, faults), daemon=True)
        self._process.start()

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process.is_alive():
            os.kill(self._process.pid or 0, number)

    def met_fault(self) -> bool:
        """Tell whether the process met its fault."""
        return (self.folder / "met").exists()

    def wait_until_held(self) -> bool:
        """Wait until the process is held, or has ended; tell which."""
        self._wait_for(self.met_fault)
        return self.met_fault()

    def wait_until_said(self, words: str) -> None:
        """Wait until the command has printed some words, or has ended."""
        self._wait_for(lambda: words in self._read("out"))

    def release(self) -> None:
        """Let a held process go on."""
        (self.folder / "go").touch()

    def named(self) -> list[str]:
        """List what the process named in the run, where it had `Namings`."""
        return self._read("named").splitlines()

    def finish(self) -> Outcome:
        """Wait for the end."""
        self._process.join(LONGEST)
        status = self._process.exitcode
        if status is None:
            self._process.kill()
            raise AssertionError(f"hangs: {self._read('out')}{self._read('err')}")
        return Outcome(status, self._read("out"), self._read("err"))

    def _read(self, name: str) -> str:
        file = self.folder / name
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def _wait_for(self, sign: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONGEST
        while not sign() and self._process.is_alive():
            assert time.monotonic() < deadline, self._read("err")
            time.sleep(0.002)


def start(arguments: Sequence[object], folder: Path, *faults: Fault) -> Command:
    """Start a command that meets faults; its output goes to a new folder in `folder`."""
    return Command(arguments, folder / f"command-{next(_numbers)}", *faults)


def succeed(arguments: Sequence[object], folder: Path, *faults: Fault) -> Outcome:
    """Run a command to its end, which must be a good one without complaint."""
    outcome = start(arguments, folder, *faults).finish()
    assert outcome.status == 0, outcome
    assert not outcome.err, outcome
    return outcome


def command(name: str, root: Path, settings: Path) -> list[object]:
    """Give the arguments of a command on a run, which `sample` and `loop` make where there is none."""
    fresh = ["--config", settings] if name in ("sample", "loop") else []
    return [name, *fresh, "--run", root]


@dataclass(frozen=True)
class Undisturbed:
    """What the commands make where nothing disturbs them; look at it and copy it, do not change it."""

    folder: Path
    settings: Path
    durations: tuple[float, ...]
    """Seconds of each command of `SEQUENCE`, then of the loop."""

    def before(self, place: int) -> Path:
        """The run before the command at a place of `SEQUENCE`, or after all; there is none before the first."""
        return self.folder / f"{place}"

    @property
    def looped(self) -> Path:
        """The run that `loop` makes."""
        return self.folder / "looped"

    def copy_before(self, place: int, root: Path) -> Path:
        """Copy the run as the command at a place finds it."""
        if place:
            shutil.copytree(self.before(place), root)
        return root


@functools.cache
def make_undisturbed(model: Path) -> Undisturbed:
    """Run the commands with nothing to disturb them."""
    folder = model.parent / "undisturbed"
    folder.mkdir()
    settings = folder / "settings.toml"
    settings.write_text(SETTINGS.format(model=json.dumps(str(model))), encoding="utf-8")
    root, durations = folder / "run", []
    for place, name in enumerate(SEQUENCE, 1):
        durations.append(_time(command(name, root, settings), folder))
        shutil.copytree(root, folder / f"{place}")
    durations.append(_time(command("loop", folder / "looped", settings), folder))
    return Undisturbed(folder, settings, tuple(durations))


def _time(arguments: Sequence[object], folder: Path) -> float:
    began = time.perf_counter()
    succeed(arguments, folder)
    return time.perf_counter() - began


def contents(root: Path) -> dict[str, str]:
    """Digest each file of a run but for what may differ: the order of a LoRA's metadata keys, and times.

    What is in quarantine, says how long a phase took, or was left by a killed process, is not of the run.
    """
    return {str(file.relative_to(root)): _digest(file) for file in _files(root)}


def _files(root: Path) -> Iterator[Path]:
    for file in sorted(root.rglob("*")):
        parts = file.relative_to(root).parts
        if file.is_file() and not any(part in NOT_OF_THE_RUN or part.endswith(".tmp") for part in parts):
            yield file


def _digest(file: Path) -> str:
    if file.name == "pytorch_lora_weights.safetensors":
        return digest_safetensors(file)
    if file.parent.name == "metrics" or file.name == "metrics.jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return canonical_json([{key: row[key] for key in row if key not in TIMES} for row in rows])
    return sha256(file.read_bytes())


def identities(root: Path) -> dict[str, object]:
    """Identity and time of each published file that nobody may write again."""
    found = {}
    for file in _files(root):
        place = file.relative_to(root)
        is_record = file.with_suffix(".safetensors").exists() and "checkpoints" not in place.parts
        if place.parts[0] in DERIVED or (is_record and not file.with_suffix(".json").exists()):
            continue
        found[str(place)] = (file.stat().st_ino, file.stat().st_mtime_ns)
    # Each of the processes that make a run at once writes what it begins with: the same bytes.
    if (inputs := RunLayout(root).inputs).exists():
        found[inputs.name] = sha256(inputs.read_bytes())
    return found


def check_left(root: Path, before: dict[str, object]) -> dict[str, object]:
    """Fail unless all that is visible is whole, and all that was published is what it was; give its identities."""
    layout = RunLayout(root)
    faults = verify_run(layout) if layout.config.exists() else []
    assert not faults, faults
    for file in _files(root):
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    after = identities(root)
    assert {place: after.get(place) for place in before} == before, "a published file was lost or written again"
    return after


def leftovers(root: Path) -> int:
    """Count what killed processes left in the midst of writing."""
    return sum(path.name.endswith(".tmp") for path in root.rglob(".*"))


def meet_at_each_step(model: Path, place: int, event: Event, folder: Path, every: int) -> Iterator[Outcome]:
    """Let the command at a place of `SEQUENCE` meet a fault before each `every`-th of its steps.

    Yields how each ended. Then the same command is run again, and the run must be as if nothing had happened.
    """
    undisturbed = make_undisturbed(model)
    expected = contents(undisturbed.before(place + 1))
    for step in itertools.count(1 + place, every):
        root = undisturbed.copy_before(place, folder / f"{event}-{step}")
        arguments = command(SEQUENCE[place], root, undisturbed.settings)
        published = identities(root)
        process = start(arguments, folder, StepFault(root, step, event))
        outcome = process.finish()
        if not process.met_fault():
            assert outcome.status == 0, outcome
            break
        published = check_left(root, published)
        yield outcome
        succeed(arguments, folder)
        check_left(root, published)
        assert contents(root) == expected, f"{event} before step {step}"
        shutil.rmtree(root)
