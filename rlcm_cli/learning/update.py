"""The gradient of one optimizer step: of everything that a configuration lets the policy learn from, added up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlcm_cli.config import Config
from rlcm_cli.learning.last_step import PathwiseReward, accumulate_last_step, choose_pathwise
from rlcm_cli.learning.learner import Learner, UpdateMetrics
from rlcm_cli.learning.matching import Matching, accumulate_matching
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.optimizer import sum_gradients
from rlcm_cli.learning.preferences import find_pairs
from rlcm_cli.learning.pretraining import accumulate_pretraining
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.learning.teacher import accumulate_last_distance, choose_teacher
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.objectives import Objective, find_objective
from rlcm_cli.processes.job import Processes
from rlcm_cli.prompts.pairs import Pairs
from rlcm_cli.rewards import Reward


@dataclass(frozen=True)
class IterationData:
    """What all updates of an iteration learn from."""

    objective: Objective[Any]
    learner: Learner
    pathwise: list[PathwiseReward]
    """Rewards whose gradient goes through the last call; empty but for `last_step.mode = "backprop"`."""
    pairs: Pairs | None
    """Real images with captions, for the pretraining loss."""
    teacher_digest: str | None = None
    """Of the pipeline that teaches, where one does."""
    matching: Matching | None = None
    """What the policy's images are matched with, where `matching.weight` asks for it."""


def gather_iteration(
    model: LatentModel,
    rollout: Rollout,
    advantages: np.ndarray,
    config: Config,
    processes: Processes,
    *,
    rewards: Mapping[str, Reward],
    pairs: Pairs | None,
    teacher: LatentModel | None = None,
) -> IterationData:
    """Gather what a configuration learns from.

    Args:
        model: With what is trained attached.
        rollout: Of the iteration.
        advantages: Of its samples, float64 [B].
        config: Of the run.
        processes: The processes that share each step.
        rewards: The loaded rewards by name; only `last_step.mode = "backprop"` uses them.
        pairs: Of `pretraining.source`, where there is one.
        teacher: The pipeline of `teacher.source`, where it is one.
    """
    weights = weigh_samples(config, torch.from_numpy(advantages).float())
    pathwise = choose_pathwise(rollout, config, rewards) if config.last_step.mode == "backprop" else []
    learner = Learner(
        model,
        rollout,
        weights,
        config,
        processes,
        teacher=choose_teacher(config, model, rollout, teacher),
        pairs=find_pairs(config, rollout),
    )
    return IterationData(find_objective(config), learner, pathwise, pairs, None if teacher is None else teacher.digest)


def weigh_samples(config: Config, advantages: torch.Tensor) -> torch.Tensor:
    """Turn the advantages of an iteration, float32 [B], into the weights of its samples in the objective."""
    objective = find_objective(config)
    if objective.advantages.clipped:
        largest = config.train.advantage_clip or math.inf
        advantages = advantages.clamp(-largest, largest)
    return objective.weigh(config.objective, advantages)


def accumulate_update(data: IterationData, minibatch: Minibatch, seed: int) -> UpdateMetrics:
    """Return the trained weights, which have none, the gradient of an optimizer step.

    `seed`: of what is drawn at random, the real images among it. A fake score takes its own steps.

    Of several processes, each computes a part of it, and all end with the same sum and the same metrics.
    """
    learner, config = data.learner, data.learner.config
    record = data.objective.accumulate(learner, minibatch)
    if data.pathwise:
        reward = accumulate_last_step(
            learner.model,
            learner.rollout,
            minibatch.samples_M,
            data.pathwise,
            settings=config.last_step,
            micro_batch_size=config.runtime.micro_batch_size,
            processes=learner.processes,
        )
        record.add(1, reward)
        if learner.teacher is not None:
            record.add(1, accumulate_last_distance(learner, minibatch.samples_M))
    if data.matching is not None:
        record.add(1, accumulate_matching(learner, data.matching, minibatch.samples_M, seed))
    if not config.pretraining.own_steps:
        record.add(1, _accumulate_pretraining(data, seed))
    return _sum_parts(learner, record)


def accumulate_own_step(data: IterationData, seed: int) -> UpdateMetrics:
    """Return the trained weights, which have none, the gradient of the pretraining loss by itself."""
    record = UpdateMetrics()
    record.add(1, _accumulate_pretraining(data, seed))
    return _sum_parts(data.learner, record)


def _accumulate_pretraining(data: IterationData, seed: int) -> Mapping[str, torch.Tensor]:
    learner, config = data.learner, data.learner.config
    if data.pairs is None:
        return {}
    return accumulate_pretraining(
        learner.model,
        data.pairs,
        config.pretraining,
        seed,
        micro_batch_size=config.runtime.micro_batch_size,
        processes=learner.processes,
    )


def _sum_parts(learner: Learner, record: UpdateMetrics) -> UpdateMetrics:
    """Add up the metrics of all processes, and their gradients in place."""
    total = UpdateMetrics()
    # By gloo, and before the gradients: NCCL would wait for a process that is gone.
    for values in learner.processes.gather(record.values):
        total.add(1, values)
    sum_gradients(learner.model.trained.parameters(learner.model).values(), learner.processes)
    return total
