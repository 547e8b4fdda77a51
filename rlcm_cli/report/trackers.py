"""A run's metrics and fixed images in experiment trackers, through accelerate's classes for them.

A tracker is a copy. What it is given comes only from the run's files, in their order, and a small file next to its log
says how far it has come. So each iteration is in the log once, also where the run was killed and resumed, got its
tracker late, or its tracker failed for a while.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import clear_environment
from pydantic import Field

from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.contact_sheet import arrange_sheet
from rlcm_cli.report.private import withhold, withhold_text
from rlcm_cli.report.tracker_services import PROJECT, SERVICES
from rlcm_cli.runs.held_out import estimate_images
from rlcm_cli.runs.run import Run
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.evaluations import Evaluation, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_iteration_metrics
from rlcm_cli.store.reading import Record, read_object
from rlcm_cli.wording import one_line

ALL = "all"
"""Stands for the trackers that are installed."""
SINGLE_IMAGES = 8
"""Prompts whose first fixed image is logged by itself."""
SHEET_COLUMNS, SHEET_ROWS = 6, 6
LONGEST_ERROR = 200


class Logged(Record):
    """How much of a run a tracker was given: a file next to its log."""

    id: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]
    """What the tracker knows the run by."""
    checkpoint: Annotated[int, Field(ge=0)] = 0
    """Newest checkpoint whose metrics it has."""
    evaluations: tuple[int, ...] = ()


def choose_trackers(names: Sequence[str]) -> list[str]:
    """Return the trackers that are meant, each once. Raises `ConfigError` where one is not installed."""
    installed = [str(name) for name in get_available_trackers()]
    if ALL in names:
        chosen = [name for name in SERVICES if name in installed]
        if not chosen:
            raise ConfigError(
                f"--log-with all: none of {', '.join(SERVICES)} is installed; pip install 'rlcm[tensorboard]', or "
                "leave it out: metrics.jsonl is always written"
            )
        return chosen
    for name in names:
        if name not in installed:
            raise ConfigError(f"--log-with {name}: it is not installed; pip install 'rlcm[{name}]'")
    return list(dict.fromkeys(names))


class RunTrackers:
    """The trackers of a run, by the names of `choose_trackers`; none is started before there is something to log."""

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        self._run = run
        self._waiting = list(names)
        self._started: dict[str, tuple[GeneralTracker, Logged]] = {}

    def catch_up(self) -> Iterator[str]:
        """Log what the run has and a tracker lacks; yield a line for each that fails and is left out from then on."""
        for name in [*self._waiting, *self._started]:
            try:
                if name in self._waiting:
                    self._waiting.remove(name)
                    self._started[name] = self._start(name)
                self._log_missing(name)
            except Exception as error:  # of a tracker's package, which must not end the run
                self._started.pop(name, None)
                yield (
                    f"the tracker {name} has failed ({type(error).__name__}: {one_line(error)[:LONGEST_ERROR]}) and "
                    f"gets nothing more for now; resuming the run later with --log-with {name} adds what it lacks"
                )

    def close(self) -> None:
        """End the logs, which are complete without it."""
        for tracker, _ in self._started.values():
            with contextlib.suppress(Exception), discard_output():
                tracker.finish()
        self._started = {}

    def _start(self, name: str) -> tuple[GeneralTracker, Logged]:
        begin_state()
        layout, service = self._run.layout, SERVICES[name]
        logged, known = read_logged(layout, name), layout.tracked(name).exists()
        begun = bool(logged.checkpoint or logged.evaluations)
        layout.logs.mkdir(parents=True, exist_ok=True)
        with discard_output(), hide_host():
            tracker = service.make(layout, logged.id, known, logged.checkpoint + 1 if begun else 0)
            tracker.start()
            logged = logged.model_copy(update={"id": service.find_id(tracker) or logged.id})
            if service.repeats_settings or not begun:
                tracker.store_init_configuration(flatten_settings(self._run.config.model_dump(mode="json")))
        write_logged(layout, name, logged)  # which may be less than before, where checkpoints were moved away
        return tracker, logged

    def _log_missing(self, name: str) -> None:
        layout, (tracker, logged) = self._run.layout, self._started[name]
        rows = range(logged.checkpoint + 1, newest_checkpoint(layout) + 1)
        evaluations = [number for number in layout.evaluations() if number not in logged.evaluations]
        # An evaluation follows the iteration that made its checkpoint: some trackers admit no step before their last.
        for number in sorted({*rows, *evaluations}):
            if number in rows:
                tracker.log(name_numbers(read_iteration_metrics(layout, number).as_row()), step=number)
                logged = logged.model_copy(update={"checkpoint": number})
            if number in evaluations:
                evaluation = read_evaluation(layout, number)
                SERVICES[name].log_images(tracker, choose_images(evaluation), number)
                tracker.log(name_numbers({"evaluation": average_rewards(evaluation)}), step=number)
                logged = logged.model_copy(update={"evaluations": (*logged.evaluations, number)})
            self._started[name] = tracker, logged
            write_logged(layout, name, logged)


def begin_state() -> None:
    """Give accelerate the process state without which its trackers do not log: one process, on the CPU.

    Of several processes only one logs, and what a launcher says of the others must not make it wait for them.
    """
    with clear_environment():
        PartialState(cpu=True)


def newest_checkpoint(layout: RunLayout) -> int:
    """Return the number of the newest checkpoint; 0 where there is none."""
    return max(layout.checkpoints(), default=0)


def read_logged(layout: RunLayout, name: str) -> Logged:
    """Read how much of a run a tracker has; what is above the newest checkpoint will be made again."""
    path = layout.tracked(name)
    if not path.exists():
        return Logged(id=secrets.token_hex(4))
    found = read_object(path, Logged, "record of a tracker", f"remove it, and {name} gets the run once more")
    newest = newest_checkpoint(layout)
    evaluations = tuple(number for number in found.evaluations if number <= newest)
    return Logged(id=found.id, checkpoint=min(found.checkpoint, newest), evaluations=evaluations)


def write_logged(layout: RunLayout, name: str, logged: Logged) -> None:
    """Write how much of a run a tracker has."""
    replace_bytes(layout.tracked(name), logged.model_dump_json().encode())


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return a configuration as one table of plain values, without folders, addresses and secrets."""
    flat: dict[str, str | int | float] = {}
    for keys, value in _leaves(withhold(dict(settings))):
        name = _unused(".".join(map(_clean, keys)), flat)
        flat[name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat


def name_numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the numbers of nested plain values by names such as `rewards/compressibility`."""
    named: dict[str, int | float] = {}
    for keys, value in _leaves(values):
        if isinstance(value, int | float):
            named[_unused("/".join(map(_clean, keys)), named)] = value
    return named


def average_rewards(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Average each reward of the fixed images over prompts, of training prompts and of held-out prompts."""
    means: dict[str, dict[str, float]] = {}
    for part, rows in (("training", ~evaluation.held_out), ("held_out", evaluation.held_out)):
        known = {name: estimate_images(evaluation, values, rows) for name, values in evaluation.rewards.items()}
        means[part] = {name: found.mean for name, found in known.items() if found is not None}
    return means


def choose_images(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Return the first fixed image of each prompt on a sheet, and those of the first prompts by themselves."""
    first: dict[str, np.ndarray] = {}
    for prompt, image in zip(evaluation.prompts, evaluation.images, strict=True):
        first.setdefault(prompt, image)
    sheet = arrange_sheet([*first.values()][: SHEET_COLUMNS * SHEET_ROWS], SHEET_COLUMNS)
    images = {"evaluation/sheet": np.asarray(sheet)}
    for prompt in [*first][:SINGLE_IMAGES]:
        name = _unused(f"evaluation/prompt/{_clean(prompt)[:40]}", images)
        images[name] = np.ascontiguousarray(first[prompt].transpose(1, 2, 0))
    return images


@contextlib.contextmanager
def discard_output() -> Iterator[None]:
    """Discard what a tracker prints: the output belongs to the command."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def hide_host() -> Iterator[None]:
    """Hide this machine's name from trackers that start: TensorBoard makes it a part of its files' names."""
    name = socket.gethostname
    socket.gethostname = lambda: PROJECT
    try:
        yield
    finally:
        socket.gethostname = name


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _clean(name: str) -> str:
    """Return a name as all trackers admit it: without the folder or address that a reward's may hold."""
    return re.sub(r"[^-\w.]+", "_", withhold_text(name), flags=re.ASCII).strip("_.") or "_"


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name}_{number}", number + 1
    return unused
