"""Thousands of changes to every kind of file of a run: each is refused in a line, or changes nothing computed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mutations import SETTLED, Mutation, draw_mutations, name_kind
from phase_runs import finish, make_config, make_loop, shared_model

from rlcm_cli.cli.watch import read_watched_run
from rlcm_cli.core.digests import sha256
from rlcm_cli.errors import RlcmError
from rlcm_cli.phases.train import train
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.run.data import read_run
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.inspection import describe_path
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.verification import verify_run
from rlcm_cli.wording import LONGEST_LINE, to_line

LONGEST = 20
"""Seconds that a reader may take; all of them take a small part of one."""
UNSEALED = ("config.json", "metrics.jsonl", "pruned.json", "rewards.png", "before_after.png", "timing")
"""Files whose every value may change without anybody knowing: derived, or of settings that may change."""
pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a reader that hangs is stopped by a signal")


class _HangError(Exception):
    pass


@pytest.fixture(scope="module")
def runs(tiny_lcm, tmp_path_factory) -> tuple[Path, Path, str]:
    """A run whose second iteration is scored and not trained, one of another seed, and the policy that is due."""
    folder = tmp_path_factory.mktemp("mutated")
    roots = []
    for seed in (0, 1):
        config = make_config(
            tiny_lcm,
            seed=seed,
            sample={"samples": 4, "batch_size": 2, "shards": 2, "steps": 3},
            evaluate={"prompts": 2},
        )
        roots.append(make_loop(folder / f"run-{seed}", config).layout.root)
    layout = RunLayout(roots[0])
    due = read_trainer_state(layout, 2).policy_digest
    shutil.rmtree(layout.checkpoint(2))
    shutil.rmtree(layout.evaluation(2).parent)
    layout.metrics(2).unlink()
    layout.pruned.write_text('{"format_version":1,"rollouts":[],"checkpoints":[]}')
    return roots[0], roots[1], due


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power fails here


def test_the_run_itself_is_sound_and_trains(runs, tiny_lcm, tmp_path):
    run, _, due = runs
    root = copy(run, tmp_path / "run")
    assert verify_run(RunLayout(root)) == []
    assert train_once(root, tiny_lcm) == due


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_no_change_is_used_without_a_word(runs, tiny_lcm, tmp_path, seed):
    try_mutations(runs, tiny_lcm, tmp_path, seed, 250)


def test_no_change_of_a_few_is_used_without_a_word(runs, tiny_lcm, tmp_path):
    try_mutations(runs, tiny_lcm, tmp_path, 0, 100)


def try_mutations(runs: tuple[Path, Path, str], model: Path, folder: Path, seed: int, count: int) -> None:
    run, other, due = runs
    faults = []
    for number, mutation in enumerate(draw_mutations(seed, count, run, other)):
        root = copy(run, folder / str(number))
        mutation.act(root)
        what = f"{number} {mutation.kind} of {mutation.place}"
        faults += [f"{what}: {fault}" for fault in try_one(root, mutation, model, due)]
        shutil.rmtree(root)
    assert not faults, "\n".join([f"{len(faults)} faults of seed {seed}", *faults[:20]])


def try_one(root: Path, mutation: Mutation, model: Path, due: str) -> Iterator[str]:
    """Give what is wrong with how each reader takes a changed run."""
    layout, before = RunLayout(root), contents(root)
    readers: dict[str, Callable[[], Any]] = {
        "verify": lambda: verify_run(layout),
        "describe": lambda: describe_path(root),
        "watch": lambda: read_watched_run(str(root), None),
        "report": lambda: read_run(open_compared(root), root.name),
    }
    found = {}
    for name, read in readers.items():
        found[name], fault = attempt(read)
        if fault:
            yield f"{name}: {fault}"
    if not mutation.forged and found["verify"] == [] and must_be_found(root, mutation):
        yield "verify: found nothing"
    if contents(root) != before:
        yield "a reader changed the run"
    trained, fault = attempt(lambda: train_once(root, model))
    if fault:
        yield f"train: {fault}"
    elif trained not in (None, due) and not mutation.forged and not settings_changed(root):
        yield "train: gives other weights"
    after = contents(root)
    lost = [name for name, state in before.items() if after.get(name) != state and name != "metrics.jsonl"]
    if lost:
        yield f"train: changed or removed {lost}"


def must_be_found(root: Path, mutation: Mutation) -> bool:
    """Tell whether a change leaves something that is not as a sound run has it."""
    # Without its receipt a record is not there, as rule 2 has it: of the iteration that is due it is yet to be made,
    # and rewards may be monitored for a part of a run.
    unpublished = mutation.kind == "gone" and (
        mutation.place.startswith("rollouts/000001/") or "/rewards/" in mutation.place
    )
    changed = digests(root) != ORIGINAL_DIGESTS  # a checkpoint 0 has an optimizer without state, whatever its seed
    return changed and not unpublished and name_kind(mutation.place) not in UNSEALED


def digests(root: Path) -> dict[str, str]:
    """Digest every file of a run; of what is no file, its kind."""
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes())
        if path.is_file() and path.stat().st_size < 2**30
        else str(path.lstat().st_mode)
        for path in sorted(root.rglob("*"))
    }


def attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """Give what a reader gives, None where it refuses in a line; and what is wrong with how it ended."""
    try:
        with time_limit():
            return read(), None
    except RlcmError as error:
        line = to_line(str(error))
        fault = None
        if "\n" in str(error) or len(line) > LONGEST_LINE + 3:
            fault = f"its message is no line: {line[:100]}"
        return None, fault
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {str(error)[:100]} ({Path(at.filename).name}:{at.lineno})"


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*arguments: object) -> None:
        raise _HangError(f"no end after {LONGEST} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def train_once(root: Path, model: Path) -> str | None:
    """Train the iteration that is due; give the new policy's digest, None where another was due."""
    run = open_run(root)
    finish(train(run, shared_model(model)))
    return read_trainer_state(run.layout, 2).policy_digest if 2 in run.layout.checkpoints() else None


def settings_changed(root: Path) -> bool:
    """Tell whether a setting was changed that may change, such as how the sum of a gradient is split."""
    config = json.loads((root / "config.json").read_text())["config"]
    return any(config.get(section) != ORIGINAL[section] for section in SETTLED)


ORIGINAL: dict[str, Any] = {}
ORIGINAL_DIGESTS: dict[str, str] = {}
"""Of the run as it was before any change."""


def copy(run: Path, target: Path) -> Path:
    """Copy a run by links: all that write here write files again."""
    shutil.copytree(run, target, copy_function=os.link)
    if not ORIGINAL_DIGESTS:
        ORIGINAL_DIGESTS.update(digests(run))
    ORIGINAL.update(json.loads((run / "config.json").read_text())["config"])
    return target


def contents(root: Path) -> dict[str, tuple[int, int, int]]:
    """Give identity, size and time of each file, link and folder: other contents would be another file."""
    return {
        path.relative_to(root).as_posix(): (state.st_ino, state.st_size * (not path.is_dir()), state.st_mode)
        for path in sorted(root.rglob("*"))
        for state in [path.lstat()]
        if not (path.is_dir() and not path.is_symlink())
    }
