"""The work of the phases as tasks for a worker process of another machine: plain values in, plain values out.

What passes from one task to another lies in the run directory, so each may be done again, by any process, where the
one before was lost. A process does one task after the other, and keeps what it has loaded for the next.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rlcm_cli import __version__
from rlcm_cli.config import Config, override_config, parse_config
from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.events import Evaluated, Event, IterationTrained, Warned
from rlcm_cli.measuring.memory import fit_run
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import Scorer, load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.worker import Worker
from rlcm_cli.runs.policy import ensure_start, start_run
from rlcm_cli.runs.run import Run, check_run
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.metrics import read_iteration_metrics
from rlcm_cli.store.score_cache import ScoreCache, default_cache

RESULTS = (Warned, IterationTrained, Evaluated)
"""Events other than progress: those that a task returns."""


@dataclass(frozen=True)
class Errand:
    """What a task must know to begin."""

    run: str
    """The run directory, by the same absolute path on every node."""
    config: str
    """JSON."""
    device: str
    """Of torch; `cuda` is the GPU that Ray gave the task."""
    threads: int
    cached: bool
    """Scores are looked up and kept in the node's cache."""
    allow_changed: bool = False
    """As of `load_scorers`."""


def greet(version: str) -> None:
    """Raise `ConfigError` unless this node has the given version of the toolkit."""
    if version != __version__:
        raise ConfigError(
            f"node {socket.gethostname()} has rlcm {__version__}, the machine that starts the loop {version}; "
            "install the same version on all"
        )


def start(errand: Errand) -> None:
    """Make the run, where there is none, and publish its checkpoint 0. Raises as `start_run`."""
    config = _begin(errand)
    ensure_start(*_start(errand.run, config.to_json()))


def sample_shard(errand: Errand, iteration: int, shard: int) -> None:
    """Draw a shard of an iteration, unless it is there."""
    run, model = _open_with_model(errand)
    _finish(sample(run, model, _alone(run, shard), iteration=iteration))


def score_one_shard(errand: Errand, iteration: int, shard: int, sampled: None) -> None:
    """Score a shard, unless they are there; `sampled` is the result of the task to wait for."""
    run, scorers = _open_with_scorers(errand)
    # What score warns of is shards that are not sampled yet, which are other tasks' business.
    device = torch.device(run.config.runtime.device)
    _finish(score(run, scorers, _alone(run, shard), iterations=[iteration], device=device))


def train_iteration(errand: Errand, iteration: int) -> list[Event]:
    """Train the checkpoint that follows an iteration, unless it is there."""
    run, model = _open_with_model(errand)
    if latest_checkpoint(run.layout) > iteration:  # this task's process was lost between publishing and replying
        return [IterationTrained(iteration + 1, read_iteration_metrics(run.layout, iteration + 1))]
    scorers = _open_with_scorers(errand)[1] if run.config.last_step.mode == "backprop" else None
    return _finish(train(run, model, scorers))


def evaluate_checkpoint(errand: Errand, checkpoint: int) -> list[Event]:
    """Draw and score the fixed images with a checkpoint, unless that was done."""
    run, model = _open_with_model(errand)
    return _finish(evaluate(run, model, _open_with_scorers(errand)[1], checkpoint))


def _open_with_model(errand: Errand) -> tuple[Run, LatentModel]:
    config = _begin(errand)
    _require_run(errand)
    return _start(errand.run, config.to_json())


def _open_with_scorers(errand: Errand) -> tuple[Run, dict[str, Scorer]]:
    config = _begin(errand)
    _require_run(errand)
    return _load_scorers(errand.run, config.to_json(), errand.cached, errand.allow_changed)


def _begin(errand: Errand) -> Config:
    """Settle on threads and device; return the configuration with that device."""
    torch.set_num_threads(errand.threads)
    device = _own_gpu() if errand.device == "cuda" else errand.device
    return override_config(parse_config(json.loads(errand.config)), flags={"runtime.device": device})


def _own_gpu() -> str:
    """Return the GPU that Ray reserved for the task at hand, as a torch device.

    Ray is told to leave CUDA_VISIBLE_DEVICES alone: it takes effect only before a process first uses CUDA, and a
    process that is kept may have another GPU in its next task.
    """
    import ray

    (reserved, *_) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"cuda:{visible.split(',').index(reserved) if visible else int(reserved)}"


def _require_run(errand: Errand) -> None:
    if not (Path(errand.run) / "config.json").exists():
        raise MissingFileError(
            f"{errand.run}: is not there on node {socket.gethostname()}; put the run on a file system that all nodes "
            "see by the same path"
        )


# Of each kind a process keeps the newest: a run has one configuration, and a task rarely gets another GPU.
@functools.lru_cache(maxsize=1)
def _start(root: str, config: str) -> tuple[Run, LatentModel]:
    """Open the run, or make it, and load its model."""
    return start_run(
        Path(root), parse_config(json.loads(config)), lambda run, model: fit_run(run, model, ("sample", "train"))[0]
    )


@functools.lru_cache(maxsize=1)
def _load_scorers(root: str, config: str, cached: bool, allow_changed: bool) -> tuple[Run, dict[str, Scorer]]:
    """Open the run, and load its rewards."""
    run = check_run(Path(root), parse_config(json.loads(config)))
    return run, load_scorers(run, cache=ScoreCache(default_cache()) if cached else None, allow_changed=allow_changed)


def _alone(run: Run, shard: int) -> Worker:
    """Return the worker whose share is one shard."""
    return Worker(shard, run.config.sample.shards)


def _finish(events: Iterator[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, RESULTS)]
