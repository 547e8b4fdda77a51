"""The experiment trackers that a run can log to: how each is started, resumed and given images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from rlcm_cli.store.layout import RunLayout

PROJECT = "rlcm"

Images = Mapping[str, np.ndarray]
"""Name → uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Service:
    """How a run is logged to a tracker."""

    make: Callable[[RunLayout, str, bool, int], GeneralTracker]
    """(run, its id, whether the tracker knows that id, first step that will be logged) → tracker, not yet started."""
    log_images: Callable[[GeneralTracker, Images, int], None]
    """(tracker, images, step)."""
    repeats_settings: bool = False
    """It may be given the settings again, some of which may change when a run is resumed."""
    find_id: Callable[[GeneralTracker], str | None] = lambda tracker: None
    """The id that a started tracker has chosen itself; None: it took the one that it was given."""


class PrivateTrackio(TrackioTracker):  # type: ignore[misc]
    """Trackio without the user's name, and without a last message when the program ends."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Log the settings, and nothing where trackio puts the user's name."""
        super().store_init_configuration({**values, "_Username": None})

    def finish(self) -> None:
        """End the log; trackio would end it again, and say so, if only the run were told."""
        import trackio

        trackio.finish()


def make_tensorboard(layout: RunLayout, run_id: str, known: bool, first: int) -> GeneralTracker:
    """Write event files to RUN/logs/tensorboard."""
    # A process that was killed may have logged more than it noted: readers drop what is from this step on.
    return TensorBoardTracker("tensorboard", layout.logs, purge_step=first)


def make_wandb(layout: RunLayout, run_id: str, known: bool, first: int) -> GeneralTracker:
    """Write to RUN/logs/wandb, for `wandb sync`; to the service where the environment names a key or a mode."""
    online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
    quiet = {"silent": True, "console": "off"}
    private = dict.fromkeys(("disable_code", "disable_git", "x_disable_meta", "x_disable_machine_info"), True)
    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        name=name_run(layout),
        id=run_id,
        dir=str(layout.logs),
        settings={**quiet, **private},
        **({"resume": "allow"} if online else {"mode": "offline"}),
    )


def make_trackio(layout: RunLayout, run_id: str, known: bool, first: int) -> GeneralTracker:
    """Write to RUN/logs/trackio, unless the environment names another folder."""
    os.environ.setdefault("TRACKIO_DIR", str(layout.logs.resolve() / "trackio"))
    name = f"{name_run(layout)}-{run_id}"
    return PrivateTrackio(PROJECT, name=name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)


def make_mlflow(layout: RunLayout, run_id: str, known: bool, first: int) -> GeneralTracker:
    """Write to a database in RUN/logs/mlflow, unless the environment names a server."""
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
        run_id=run_id if known else None,
        run_name=name_run(layout),
        tags={"mlflow.user": PROJECT, "mlflow.source.name": PROJECT},  # else the user's name and the program's path
    )


def name_run(layout: RunLayout) -> str:
    """Return the name of a run's folder."""
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


def _mlflow_id(tracker: GeneralTracker) -> str | None:
    return None if tracker.tracker is None else str(tracker.tracker.info.run_id)


SERVICES = {
    "tensorboard": Service(make_tensorboard, _tensorboard_images),
    "wandb": Service(make_wandb, _wandb_images, repeats_settings=True),
    "trackio": Service(make_trackio, _trackio_images, repeats_settings=True),
    "mlflow": Service(make_mlflow, _mlflow_images, find_id=_mlflow_id),
}
