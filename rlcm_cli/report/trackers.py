"""A run's metrics and fixed images in experiment trackers, through accelerate's classes for them.

A tracker is a copy. What it is given comes from the run's files alone, in their order, and a small file beside its log
says how far it has come. So the log of a run that was killed and continued, that gets a tracker late, or whose tracker
failed for a while, has each iteration once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)
from accelerate.utils import clear_environment
from pydantic import Field

from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.contact_sheet import arrange_sheet
from rlcm_cli.report.private import withhold, withhold_text
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.evaluations import Evaluation, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import Record, read_object
from rlcm_cli.store.run import read_metrics_row

PROJECT = "rlcm"
EVERY_ONE = "all"
"""Stands for the trackers that are installed."""
SHOWN_ALONE = 8
"""Prompts whose first fixed image is logged by itself."""
SHEET_COLUMNS, SHEET_ROWS = 6, 6
LONGEST_ERROR = 200

Images = Mapping[str, np.ndarray]
"""Name → uint8 [H, W, 3]."""


@dataclass
class Logged:
    """How much of a run a tracker was given."""

    id: str
    """What the tracker knows the run by."""
    checkpoint: int = 0
    """Newest checkpoint whose metrics it has."""
    evaluations: list[int] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether it has anything."""
        return bool(self.checkpoint or self.evaluations)


@dataclass(frozen=True)
class Service:
    """How a run is continued in a tracker, and how images are given to it."""

    make: Callable[[RunLayout, Logged], GeneralTracker]
    log_images: Callable[[GeneralTracker, Images, int], None]
    takes_settings_anew: bool = False
    """It may be given the settings again, some of which may change when a run is continued."""


def choose_trackers(names: Sequence[str]) -> list[str]:
    """Give the trackers that are meant, each once. Raises `ConfigError` where one is not installed."""
    installed = [str(name) for name in get_available_trackers()]
    if EVERY_ONE in names:
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
    """The trackers of a run; none is started before there is something to log.

    `names`: of `choose_trackers`. `settings`: the run's configuration, of which no folder, address or secret is
    logged.
    """

    def __init__(self, layout: RunLayout, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._layout = layout
        self._settings = settings
        self._waiting = list(names)
        self._started: dict[str, tuple[GeneralTracker, Logged]] = {}

    def catch_up(self) -> Iterator[str]:
        """Log what the run has and a tracker lacks; give a line for each that fails, which is left alone then."""
        for name in [*self._waiting, *self._started]:
            try:
                if name in self._waiting:
                    self._waiting.remove(name)
                    self._started[name] = self._start(name)
                self._log_missing(name, *self._started[name])
            except Exception as error:
                self._started.pop(name, None)
                yield (
                    f"the tracker {name} has failed ({describe_error(error)}) and gets nothing more for now; going on "
                    f"with the run later, with --log-with {name}, adds what it lacks"
                )

    def close(self) -> None:
        """End the logs, which are complete without it."""
        for tracker, _ in self._started.values():
            with contextlib.suppress(Exception), silence():
                tracker.finish()
        self._started = {}

    def _start(self, name: str) -> tuple[GeneralTracker, Logged]:
        begin_state()
        logged = read_logged(self._layout, name)
        self._layout.logs.mkdir(parents=True, exist_ok=True)
        with silence(), hide_host():
            tracker = SERVICES[name].make(self._layout, logged)
            tracker.start()
            if name == "mlflow" and tracker.tracker is not None:
                logged.id = tracker.tracker.info.run_id
            if SERVICES[name].takes_settings_anew or not logged.begun:
                tracker.store_init_configuration(flatten_settings(self._settings))
        write_logged(self._layout, name, logged)  # which may be less than before, where checkpoints were moved away
        return tracker, logged

    def _log_missing(self, name: str, tracker: GeneralTracker, logged: Logged) -> None:
        layout = self._layout
        newest = (layout.checkpoints() or [0])[-1]
        rows = range(logged.checkpoint + 1, newest + 1)
        evaluations = [number for number in layout.evaluations() if number not in logged.evaluations]
        # An evaluation follows the iteration that made its checkpoint: some trackers admit no step before their last.
        for number in sorted({*rows, *evaluations}):
            if number in rows:
                tracker.log(name_metrics(read_metrics_row(layout, number)), step=number)
                logged.checkpoint = number
            if number in evaluations:
                evaluation = read_evaluation(layout, number)
                SERVICES[name].log_images(tracker, draw_images(evaluation), number)
                tracker.log(name_metrics({"evaluation": average_rewards(evaluation)}), step=number)
                logged.evaluations.append(number)
            write_logged(layout, name, logged)


def begin_state() -> None:
    """Give accelerate the process state without which its trackers do not log: one process, on the CPU.

    Of several processes one alone logs, and what a launcher says of the others must not make it wait for them.
    """
    with clear_environment():
        PartialState(cpu=True)


class _LoggedRecord(Record):
    """The file of a `Logged`."""

    id: Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]
    checkpoint: Annotated[int, Field(ge=0)]
    evaluations: tuple[int, ...]


def read_logged(layout: RunLayout, name: str) -> Logged:
    """Read how much of a run a tracker has; what is above the newest checkpoint will be made anew."""
    path = layout.tracked(name)
    if not path.exists():
        return Logged(id=secrets.token_hex(4))
    record = read_object(path, _LoggedRecord, "record of a tracker", f"remove it, and {name} gets the run once more")
    newest = (layout.checkpoints() or [0])[-1]
    evaluations = [number for number in record.evaluations if number <= newest]
    return Logged(record.id, min(record.checkpoint, newest), evaluations)


def write_logged(layout: RunLayout, name: str, logged: Logged) -> None:
    """Write how much of a run a tracker has."""
    record = {"id": logged.id, "checkpoint": logged.checkpoint, "evaluations": logged.evaluations}
    replace_bytes(layout.tracked(name), json.dumps(record).encode())


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Give a configuration as one table of plain values, without folders, addresses and secrets."""
    flat: dict[str, str | int | float] = {}
    for keys, value in _leaves(withhold(dict(settings))):
        name = _unused(".".join(map(_clean, keys)), flat)
        flat[name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat


def name_metrics(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """Give the numbers of nested metrics by names such as `rewards/compressibility`."""
    named: dict[str, int | float] = {}
    for keys, value in _leaves(metrics):
        if isinstance(value, int | float) and keys != ("format_version",):
            named[_unused("/".join(map(_clean, keys)), named)] = value
    return named


def average_rewards(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Average each reward of the fixed images, of training prompts and of those that are kept out of training."""
    parts = {"training": ~evaluation.held_out, "held_out": evaluation.held_out}
    means = {
        part: {name: values[rows].nanmean().item() for name, values in evaluation.rewards.items()}
        for part, rows in parts.items()
    }
    return {part: {name: mean for name, mean in of_part.items() if mean == mean} for part, of_part in means.items()}


def draw_images(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Give the first fixed image of each prompt on a sheet, and those of the first prompts by themselves."""
    first: dict[str, int] = {}
    for row, prompt in enumerate(evaluation.prompts):
        first.setdefault(prompt, row)
    pictures = {prompt: evaluation.images[row] for prompt, row in first.items()}
    sheet = arrange_sheet([*pictures.values()][: SHEET_COLUMNS * SHEET_ROWS], SHEET_COLUMNS)
    images = {"evaluation/sheet": np.asarray(sheet)}
    for prompt in [*pictures][:SHOWN_ALONE]:
        name = _unused(f"evaluation/prompt/{_clean(prompt)[:40]}", images)
        images[name] = pictures[prompt].permute(1, 2, 0).contiguous().numpy()
    return images


def describe_error(error: Exception) -> str:
    """Give an error as a part of a line."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what a tracker prints of itself: a command's output is its own."""
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


class PrivateTrackio(TrackioTracker):  # type: ignore[misc]
    """Trackio without the user's name, and without a last word when the program ends."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log the settings, and no name in the place where trackio puts that of the user."""
        super().store_init_configuration({**values, "_Username": None})

    def finish(self) -> None:
        """End the log; trackio would do that again, and say so, if it were told by the run alone."""
        import trackio

        trackio.finish()


def make_tensorboard(layout: RunLayout, logged: Logged) -> GeneralTracker:
    """Write event files to RUN/logs/tensorboard."""
    # A process that was killed may have logged more than it noted: readers drop what is from this step on.
    first = logged.checkpoint + 1 if logged.begun else 0
    return TensorBoardTracker("tensorboard", layout.logs, purge_step=first)


def make_wandb(layout: RunLayout, logged: Logged) -> GeneralTracker:
    """Write to RUN/logs/wandb, for `wandb sync`; to the service where the environment names a key or a mode."""
    online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
    private = {
        "silent": True,
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
    }
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_name(layout),
        id=logged.id,
        dir=str(layout.logs),
        settings=private,
        **({"resume": "allow"} if online else {"mode": "offline"}),
    )


def make_trackio(layout: RunLayout, logged: Logged) -> GeneralTracker:
    """Write to RUN/logs/trackio, unless the environment names another place."""
    os.environ.setdefault("TRACKIO_DIR", str(layout.logs.resolve() / "trackio"))
    return PrivateTrackio(
        PROJECT,
        name=f"{run_name(layout)}-{logged.id}",
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )


def make_mlflow(layout: RunLayout, logged: Logged) -> GeneralTracker:
    """Write to a data base in RUN/logs/mlflow, unless the environment names a server."""
    artifacts = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        import mlflow

        folder = layout.logs.resolve() / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
        artifacts = (folder / "artifacts").as_uri()
    return MLflowTracker(
        PROJECT,
        logging_dir=artifacts,
        run_id=logged.id if layout.tracked("mlflow").exists() else None,
        run_name=run_name(layout),
        tags={"mlflow.user": PROJECT, "mlflow.source.name": PROJECT},  # else the user's name and the program's path
    )


def run_name(layout: RunLayout) -> str:
    """Give the name of a run's folder."""
    return layout.root.resolve().name


def _tensorboard_images(tracker: GeneralTracker, images: Images, step: int) -> None:
    tracker.log_images({name: image[None] for name, image in images.items()}, step=step, dataformats="NHWC")


def _wandb_images(tracker: GeneralTracker, images: Images, step: int) -> None:
    tracker.log_images({name: [image] for name, image in images.items()}, step=step)


def _trackio_images(tracker: GeneralTracker, images: Images, step: int) -> None:
    import trackio

    tracker.log({name: trackio.Image(image) for name, image in images.items()}, step=step)


def _mlflow_images(tracker: GeneralTracker, images: Images, step: int) -> None:
    import mlflow

    for name, image in images.items():
        mlflow.log_image(image, artifact_file=f"{name}/{step:06d}.png")


SERVICES = {
    "tensorboard": Service(make_tensorboard, _tensorboard_images),
    "wandb": Service(make_wandb, _wandb_images, takes_settings_anew=True),
    "trackio": Service(make_trackio, _trackio_images, takes_settings_anew=True),
    "mlflow": Service(make_mlflow, _mlflow_images),
}


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _clean(name: str) -> str:
    """Give a name as all trackers admit it: without the folder or address that a reward's may hold."""
    return re.sub(r"[^-\w.]+", "_", withhold_text(name), flags=re.ASCII).strip("_.") or "_"


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    number = 2
    unused = name
    while unused in taken:
        unused, number = f"{name}_{number}", number + 1
    return unused
