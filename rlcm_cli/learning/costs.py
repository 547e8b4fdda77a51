"""What an iteration cost: model forwards, seconds, and processor time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlcm_cli.config import Config
from rlcm_cli.core.throughput import Work
from rlcm_cli.learning.log_probs import refresh_passes
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.objectives import BACKWARD_FORWARDS, find_objective
from rlcm_cli.processes.job import Processes
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest
from rlcm_cli.store.timings import read_timings


def count_iteration_forwards(config: Config, model: LatentModel, rollout: Rollout, *, refreshes: int) -> int:
    """Count the model forwards of an iteration, a backward pass as `BACKWARD_FORWARDS`.

    `refreshes`: passes over all transitions that took their old log-probabilities again.
    """
    trained = count_training_calls(config, rollout.trajectories.actions, refreshes=refreshes)
    return drawing_forwards(model, rollout) + _forwards_a_call(model, rollout) * trained


def count_training_calls(config: Config, actions: int, *, refreshes: int) -> int:
    """Count the model calls, for one image each, that training takes in an iteration of `actions` a trajectory.

    A backward pass counts as `BACKWARD_FORWARDS`, a prediction of a teacher as one of the model's. Guidance without
    an embedding makes two forwards of each.
    """
    last = config.last_step
    a_sample = find_objective(config).forwards(config, actions - last.own_actions) + refreshes * actions
    if last.mode == "backprop":
        passes = 1 + BACKWARD_FORWARDS
        taught = passes + 1 if config.teacher.weight else 0
        a_sample += config.train.inner_epochs * last.calls * (passes + taught)
    if config.matching.weight:
        passes = 1 + BACKWARD_FORWARDS  # of the policy, and of each step of the fake score
        a_sample += config.train.inner_epochs * (passes + 2 + config.matching.steps * passes)
    return round(config.sample.samples * a_sample)


def count_work(config: Config, actions: int) -> Work:
    """Count what a whole run of a configuration asks for, of `actions` a trajectory."""
    images = config.runtime.iterations * config.sample.samples
    trained = config.train.trained_actions(actions - config.last_step.own_actions) * config.train.inner_epochs
    return Work(images, config.sample.steps + refresh_passes(config) * actions, images * trained)


def drawing_forwards(model: LatentModel, rollout: Rollout) -> int:
    """Count the model forwards that drawing an iteration took."""
    return _forwards_a_call(model, rollout) * len(rollout.trajectories) * rollout.schedule.steps


def _forwards_a_call(model: LatentModel, rollout: Rollout) -> int:
    return model.count_predictions(rollout.manifest.schedule.guidance_scale)


def read_phase_times(layout: RunLayout, manifest: RolloutManifest) -> dict[str, list[dict[str, float]]]:
    """Read how long each shard was sampled and scored, by phase. Raises the errors of `read_timings`."""
    return {
        phase: read_timings(layout, manifest.iteration, phase, len(manifest.shards)) for phase in ("sample", "score")
    }


def phase_seconds(
    times: Mapping[str, Sequence[Mapping[str, float]]],
    train_cpu_seconds: float,
    processes: Processes = Processes(),
) -> dict[str, float]:
    """Return how long sampling and scoring took, and the processor time of all three; nothing where it is not known.

    The seconds are those of this process's own shards: on the clock what its phases took, and of a single
    process that of all shards, also where several machines drew them at once. The processor time is of all
    processes, `train_cpu_seconds` included. `times`: of `read_phase_times`.
    """
    own = processes.divide()
    found = {
        f"{phase}_seconds": sum(time["seconds"] for shard, time in enumerate(of_shards) if own.takes(shard))
        for phase, of_shards in times.items()
        if of_shards
    }
    if len(found) == len(times):
        found["cpu_seconds"] = train_cpu_seconds + sum(
            time["cpu_seconds"] for of_shards in times.values() for time in of_shards
        )
    return found
