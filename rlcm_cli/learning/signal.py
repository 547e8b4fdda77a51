"""Whether an iteration has anything to learn from: rewards that differ, and a learning rate above 0."""

from __future__ import annotations

import numpy as np

from rlcm_cli.config import Config
from rlcm_cli.learning.advantages import rows_of
from rlcm_cli.learning.optimizer import rate_of
from rlcm_cli.learning.update import IterationData

COMPARED_WITH = {
    "per-prompt": "the latest rewards of its prompt",
    "batch": "the others of the batch",
    "group": "the others of its group",
    "leave-one-out": "the others of its group",
    "none": "the others of the batch",
}
"""What each kind of advantages compares a reward with."""


def find_no_signal(data: IterationData, advantages: np.ndarray) -> str | None:
    """Return why an iteration's rewards teach nothing; None where they teach something.

    A step without a signal would not stand still: Adam goes on along its moments, and the KL penalty and the
    pretraining loss pull. Advantages of 0 for all are no signal; so are rewards as they are (`none`), and the weights
    of a regression, where all are equal. What reaches the policy through the last call counts as well, and so
    does a table of pairs.
    """
    rollout, config = data.learner.rollout, data.learner.config
    differences_only = config.advantage_kind == "none" or data.objective.advantages.differences_only
    teaches = np.ptp(advantages) > 0 if differences_only else advantages.any()
    if teaches or data.learner.pairs is not None or any(part.factors.any() for part in data.pathwise):
        return None
    values = [rollout.rewards[rows_of(rollout.tasks, task)] for task in config.joint_tasks()]
    if all((of_task == of_task[0]).all() for of_task in values):
        found = ", ".join(dict.fromkeys(f"{of_task[0]:.4g}" for of_task in values))
        reason = f"all rewards are equal ({found})"
    else:
        reason = f"no reward differs from what it is compared with, {COMPARED_WITH[config.advantage_kind]}"
    return f"{reason}, so that there is nothing to learn from; the policy stays as it is"


def starts_to_rest(config: Config, iteration: int) -> bool:
    """Return whether an iteration (from 0) is the first whose learning rate has decayed to 0."""
    return rate_of(config.train, iteration) == 0 and (iteration == 0 or rate_of(config.train, iteration - 1) > 0)


def describe_rest(config: Config, done: int) -> str | None:
    """Describe the learning rate of a run that resumes after `done` iterations; None unless it is 0 already."""
    left = config.runtime.iterations - done
    if left <= 0 or rate_of(config.train, done) > 0 or starts_to_rest(config, done):
        return None
    return (
        f"the learning rate has decayed to 0 (train.lr_decay_iterations is {config.train.lr_decay_iterations}): the "
        f"{left} iterations that are left change nothing; a longer decay needs a new run"
    )
