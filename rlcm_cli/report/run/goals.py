"""What a run is trained for, as one number an image: the weighted sum of a task's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.report.compare.contenders import describe_sum
from rlcm_cli.report.run.data import Evidence
from rlcm_cli.store.evaluations import Evaluation


@dataclass(frozen=True)
class Goal:
    """The sum that a task of several rewards is trained for."""

    name: str
    """For people."""
    task: str
    weights: Mapping[str, float]
    """Reward → what its values are multiplied by."""

    def values(self, evaluation: Evaluation) -> Tensor:
        """Return the sum of each image, float64 [B]; NaN for images of other tasks."""
        total = torch.full((len(evaluation.tasks),), torch.nan, dtype=torch.float64)
        rows = [row for row, task in enumerate(evaluation.tasks) if task == self.task]
        parts = [weight * evaluation.rewards[name][rows].double() for name, weight in self.weights.items()]
        total[rows] = torch.stack(parts).sum(0)
        return total


def find_goals(evidence: Evidence) -> list[Goal]:
    """Find the goals of the tasks that have several rewards, and whose rewards all evaluations have.

    Where training normalises each reward, the sum is of standard deviations over the first evaluation's images:
    of the rewards as they are, the one with the largest unit would be all that the sum tells.
    """
    config, goals = evidence.run.config, []
    for task, weights in evidence.run.contender.tasks.items():
        known = all(weights.keys() <= evaluation.rewards.keys() for evaluation in evidence.evaluations)
        if len(weights) < 2 or not evidence.evaluations or not known:
            continue
        name = describe_sum(weights)
        if (config["tasks"].get(task) or config)["combine"] != "sum":
            weights = {
                reward: weight / _spread(evidence.evaluations, reward, task) for reward, weight in weights.items()
            }
            name += ", each in standard deviations"
        goals.append(Goal(name if len(evidence.run.contender.tasks) == 1 else f"{task}: {name}", task, weights))
    return goals


def _spread(evaluations: Sequence[Evaluation], reward: str, task: str) -> float:
    first = evaluations[0]
    values = first.rewards[reward].double()[[of_image == task for of_image in first.tasks]]
    return (values.std().item() if len(values) > 1 else 0.0) or 1.0
