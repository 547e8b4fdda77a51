"""What a run is trained for, as one number an image: the weighted sum of a task's rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlcm_cli.report.compare.runs import DEVIATIONS, describe_weights
from rlcm_cli.report.run.data import RunData
from rlcm_cli.runs.held_out import has_deviations, sum_by_task, weigh_rewards
from rlcm_cli.store.evaluations import Evaluation


@dataclass(frozen=True)
class Goal:
    """The sum that a task of several rewards is trained for."""

    name: str
    """For people."""
    task: str
    weights: Mapping[str, float]
    """Reward → what its values are multiplied by."""

    def values(self, evaluation: Evaluation) -> np.ndarray:
        """Return the sum of each image, float64 [B]; NaN for images of other tasks."""
        return sum_by_task(evaluation, {self.task: self.weights})


def find_goals(data: RunData) -> list[Goal]:
    """Find the goals of the tasks that have several rewards, all of which every evaluation has.

    Where training normalises each reward, the sum is of standard deviations, see `weigh_rewards`.
    """
    goals = []
    tasks, scaled = data.config.joint_tasks(), has_deviations(data.config)
    weights = weigh_rewards(data.evaluations, data.config)
    for name, task in tasks.items():
        known = all(task.rewards.keys() <= evaluation.rewards.keys() for evaluation in data.evaluations)
        if len(task.rewards) < 2 or not data.evaluations or not known:
            continue
        title = describe_weights(task.rewards) + (DEVIATIONS if scaled[name] else "")
        goals.append(Goal(title if len(tasks) == 1 else f"{name}: {title}", name, weights[name]))
    return goals
