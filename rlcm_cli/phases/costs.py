"""What an iteration cost: model forwards, seconds, and processor time."""

from __future__ import annotations

from rlcm_cli.config import Config
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.phases.rollout import Rollout
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import RolloutManifest
from rlcm_cli.store.timings import read_timings

BACKWARD_FORWARDS = 2
"""A backward pass in forwards, by the usual rule of thumb."""


def count_forwards(config: Config, model: DiffusionModel, rollout: Rollout) -> int:
    """Count the model forwards of an iteration: guidance without an embedding counts two, a backward pass two."""
    settings, samples = config.train, len(rollout.trajectories)
    guided = not model.guided_by_embedding and rollout.manifest.schedule.guidance_scale > 1
    passes = 1 + BACKWARD_FORWARDS + bool(settings.kl_weight) + (settings.objective == "rebel")
    actions = round(rollout.trajectories.actions * settings.timestep_fraction)
    trained = samples * actions * settings.inner_epochs * passes
    if config.last_step.mode == "backprop":
        trained += samples * settings.inner_epochs * (1 + BACKWARD_FORWARDS)
    return (1 + guided) * (samples * rollout.schedule.steps + trained)


def phase_seconds(layout: RunLayout, manifest: RolloutManifest, train_cpu_seconds: float) -> dict[str, float]:
    """Give how long sampling and scoring took, and the processor time of all three; nothing where it is not known."""
    shards = len(manifest.shards)
    known = {phase: read_timings(layout, manifest.iteration, phase, shards) for phase in ("sample", "score")}
    found = {f"{phase}_seconds": times["seconds"] for phase, times in known.items() if times}
    if len(found) == len(known):
        found["cpu_seconds"] = train_cpu_seconds + sum(times["cpu_seconds"] for times in known.values() if times)
    return found
