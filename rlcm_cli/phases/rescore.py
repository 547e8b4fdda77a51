"""Old log-probabilities with the numerics of training, where rounding would move the ratio that is clipped.

Drawing and replaying round differently: their batches have other sizes, and so other kernels. In float32 the ratio
before the first update stays within 1e-6 of 1. In 16 bits, and in TF32, it is off by up to the clip range and more, so
that clipping would pick transitions at random. There the old log-probabilities are those that the policy which drew
the samples gives in training: the actions stay, what is said about them is measured with the same ruler as later.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from rlcm_cli.config import Config
from rlcm_cli.core.objectives import ObjectiveResult
from rlcm_cli.core.trajectory import Trajectories, flatten_transitions
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.phases.gradient import LARGEST, micro_batches, replay
from rlcm_cli.phases.objectives import ObjectiveParts
from rlcm_cli.phases.policy import load_checkpoint
from rlcm_cli.phases.rollout import Rollout
from rlcm_cli.phases.run import Run
from rlcm_cli.phases.team import Team
from rlcm_cli.phases.update import Lessons

RATIO_OBJECTIVES = ("ppo", "grpo", "rebel")
"""Those whose gradient depends on the old log-probabilities."""


@dataclass(frozen=True)
class Rescored:
    """What an iteration learns from, its old log-probabilities taken anew."""

    lessons: Lessons
    drift: float | None
    """The largest |ratio − 1| of replaying to drawing; None: the first update measures it."""
    passes: int
    """Forward passes over all transitions that it took."""


def numerics(config: Config) -> str:
    """Name how a run rounds: the dtype of its model, or tf32."""
    return "tf32" if config.runtime.tf32 and config.model.dtype == "float32" else config.model.dtype


def is_rescored(config: Config) -> bool:
    """Tell whether the old log-probabilities that were stored in drawing are too coarse for the objective."""
    return numerics(config) != "float32" and config.train.objective in RATIO_OBJECTIVES


def rescoring_passes(config: Config) -> int:
    """Count the forward passes that rescoring adds to an iteration's: none where there is a single update."""
    settings = config.train
    if config.pretraining.source is not None and config.pretraining.own_steps:  # they move the policy first
        return int(is_rescored(config))
    single = settings.inner_epochs == 1 and (settings.minibatch_size or config.sample.samples) >= config.sample.samples
    return int(is_rescored(config) and not (single and settings.objective != "rebel"))


def rescore_lessons(
    model: DiffusionModel,
    lessons: Lessons,
    config: Config,
    team: Team = Team(),  # noqa: B008
) -> Rescored:
    """Take the old log-probabilities of an on-policy iteration from the model as it is now, before its first update.

    Where there is but one update, its own forward pass gives them; otherwise a pass over all transitions comes first.
    """
    if not rescoring_passes(config):
        return Rescored(dataclasses.replace(lessons, objective=anchor(lessons.objective)), None, 0)
    rollout, drift = rescore(model, lessons.rollout, config.runtime.micro_batch_size, team)
    return Rescored(dataclasses.replace(lessons, rollout=rollout), drift, 1)


def rescore_stale_lessons(
    run: Run,
    model: DiffusionModel,
    lessons: Lessons,
    team: Team = Team(),  # noqa: B008
) -> Rescored:
    """Take the old log-probabilities of an iteration from the checkpoint that drew it.

    The model ends with the weights of the checkpoint that is trained. Raises `MissingFileError` and what
    `load_checkpoint` raises.
    """
    iteration = lessons.rollout.manifest.iteration
    load_checkpoint(run, model, run.config.sample.drawing_checkpoint(iteration))
    rollout, _ = rescore(model, lessons.rollout, run.config.runtime.micro_batch_size, team)
    load_checkpoint(run, model, iteration)
    # How far replaying is from drawing says nothing of how far the policies are from each other.
    return Rescored(dataclasses.replace(lessons, rollout=rollout), None, 1)


def anchor(objective: ObjectiveParts) -> ObjectiveParts:
    """Give an objective whose old policy is the present one: every ratio is 1, and its gradient that of log π.

    Its `ratio_drift` remains that of replaying to drawing.
    """

    def loss(log_probs: torch.Tensor, old_log_probs: torch.Tensor, weights: torch.Tensor) -> ObjectiveResult:
        result = objective.loss(log_probs, log_probs.detach(), weights)
        drift = ((log_probs.detach() - old_log_probs).exp() - 1).abs().max()
        return ObjectiveResult(result.loss, {**result.metrics, LARGEST: drift})

    return dataclasses.replace(objective, loss=loss)


@torch.no_grad()
def measure_drift(model: DiffusionModel, rollout: Rollout, micro_batch_size: int) -> float:
    """Replay as many stored transitions as a micro-batch has, and return the largest |ratio − 1|; 0 where none is.

    All processes of a team replay the same ones, so that all find the same.
    """
    trajectories = rollout.trajectories
    count, actions = min(len(trajectories), micro_batch_size), trajectories.actions
    if not actions:
        return 0.0
    some = flatten_transitions(trajectories, torch.arange(count), torch.arange(actions).expand(count, -1))
    _, part = next(micro_batches(model, some, micro_batch_size, Team()))
    # NaN stays NaN, for the check of the ratio to tell.
    return ((replay(model, rollout, part).log_probs_N - part.log_probs_N).exp() - 1).abs().max().item()


@torch.no_grad()
def rescore(
    model: DiffusionModel,
    rollout: Rollout,
    micro_batch_size: int,
    team: Team = Team(),  # noqa: B008
) -> tuple[Rollout, float]:
    """Replay all stored transitions, and give the rollout with the log-probabilities found.

    Beside it the largest |ratio − 1| of these to the stored ones. Of several processes, each replays a part.
    """
    trajectories = rollout.trajectories
    count, actions = len(trajectories), trajectories.actions
    everything = flatten_transitions(trajectories, torch.arange(count), torch.arange(actions).expand(count, -1))
    log_probs_N = torch.zeros(len(everything))
    first = team.part(len(everything)).start
    for _, part in micro_batches(model, everything, micro_batch_size, team):
        log_probs_N[first : first + len(part)] = replay(model, rollout, part).log_probs_N.cpu()
        first += len(part)
    team.sum(log_probs_N)
    # NaN stays NaN, for the check of the ratio to tell.
    drift = ((log_probs_N - everything.log_probs_N).exp() - 1).abs().max().item() if actions else 0.0
    log_probs_BA = log_probs_N.view(actions, count).T.contiguous()
    anew = Trajectories(trajectories.latents_BSCHW, log_probs_BA, trajectories.timesteps_A2)
    return dataclasses.replace(rollout, trajectories=anew), drift
