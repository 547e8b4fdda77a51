"""The gradient of one optimizer step: of everything that a configuration lets the policy learn from, added up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.trained import TRAINED
from rlcm_cli.phases.gradient import Minibatch, UpdateMetrics, accumulate_gradient
from rlcm_cli.phases.inputs import check_images
from rlcm_cli.phases.last_step import PathwiseReward, accumulate_last_step, choose_pathwise
from rlcm_cli.phases.objectives import ObjectiveParts, choose_objective
from rlcm_cli.phases.pretraining import accumulate_pretraining, find_pairs
from rlcm_cli.phases.rollout import Rollout
from rlcm_cli.phases.run import Run
from rlcm_cli.phases.score import Scorer, load_scorers
from rlcm_cli.phases.team import Team
from rlcm_cli.prompts.pairs import Pairs


@dataclass(frozen=True)
class Lessons:
    """What all updates of an iteration learn from."""

    rollout: Rollout
    objective: ObjectiveParts
    weights: Tensor
    """Of the samples in the objective, float32 [B]."""
    pathwise: list[PathwiseReward]
    """Rewards whose gradient goes through the last call; empty but for `last_step.mode = "backprop"`."""
    pairs: Pairs | None
    """Real images with captions, for the pretraining loss."""


def prepare_lessons(
    run: Run,
    model: DiffusionModel,
    rollout: Rollout,
    advantages: np.ndarray,
    scorers: Mapping[str, Scorer] | None,
) -> Lessons:
    """Gather what a configuration learns from; `scorers` are loaded where they are needed and none are given."""
    objective = choose_objective(run.config.train)
    pathwise: list[PathwiseReward] = []
    if run.config.last_step.mode == "backprop":
        pathwise = choose_pathwise(rollout, run.config, load_scorers(run) if scorers is None else scorers)
    weights = objective.weigh(torch.from_numpy(advantages).float())
    check_images(run.layout, run.config)
    return Lessons(rollout, objective, weights, pathwise, find_pairs(run.config, model))


def accumulate_update(
    model: DiffusionModel,
    lessons: Lessons,
    minibatch: Minibatch,
    config: Config,
    seed: int,
    team: Team = Team(),  # noqa: B008
) -> UpdateMetrics:
    """Give the trained weights, which have none, the gradient of an optimizer step; `seed` is of its real images.

    Of several processes, each computes a part of it, and all end with the same sum and the same metrics.
    """
    micro_batch_size = config.runtime.micro_batch_size
    record = accumulate_gradient(
        model,
        lessons.rollout,
        minibatch,
        lessons.weights,
        lessons.objective,
        config.train,
        micro_batch_size=micro_batch_size,
        team=team,
    )
    if lessons.pathwise:
        reward = accumulate_last_step(
            model,
            lessons.rollout,
            minibatch.samples_M,
            lessons.pathwise,
            weight=config.last_step.weight,
            micro_batch_size=micro_batch_size,
            team=team,
        )
        record.add(1, reward)
    if lessons.pairs is not None and not config.pretraining.own_steps:
        loss = accumulate_pretraining(
            model, lessons.pairs, config.pretraining, seed, micro_batch_size=micro_batch_size, team=team
        )
        record.add(1, loss)
    return _sum_parts(model, record, config, team)


def accumulate_own_step(
    model: DiffusionModel,
    lessons: Lessons,
    config: Config,
    seed: int,
    team: Team = Team(),  # noqa: B008
) -> UpdateMetrics:
    """Give the trained weights, which have none, the gradient of the pretraining loss by itself."""
    record = UpdateMetrics()
    if lessons.pairs is not None:
        loss = accumulate_pretraining(
            model,
            lessons.pairs,
            config.pretraining,
            seed,
            micro_batch_size=config.runtime.micro_batch_size,
            team=team,
        )
        record.add(1, loss)
    return _sum_parts(model, record, config, team)


def _sum_parts(model: DiffusionModel, record: UpdateMetrics, config: Config, team: Team) -> UpdateMetrics:
    """Add up the metrics of all processes, and their gradients in place."""
    total = UpdateMetrics()
    # By gloo, and before the gradients: NCCL would wait for a process that is gone.
    for values in team.gather(record.values):
        total.add(1, values)
    sum_gradients(TRAINED[config.train.parameters].parameters(model).values(), team)
    return total


def sum_gradients(parameters: Iterable[torch.nn.Parameter], team: Team) -> None:
    """Replace each gradient by the sum of all processes' gradients, in float32; none where no process has one."""
    if team.size == 1:
        return
    listed = list(parameters)
    present = torch.tensor([float(parameter.grad is not None) for parameter in listed], device=listed[0].device)
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach() for parameter in listed
    ]
    flat = torch.cat([present, *(gradient.flatten().float() for gradient in gradients)])
    team.sum(flat)
    counts, *sums = torch.split(flat, [len(listed), *(parameter.numel() for parameter in listed)])
    for parameter, count, summed in zip(listed, counts.tolist(), sums, strict=True):
        parameter.grad = summed.view_as(parameter).to(parameter.dtype) if count else None
