"""What an objective's step has at hand, and what it measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.processes.team import Team

LARGEST = "ratio_drift"
"""The metric of which the largest counts, not the mean."""


@dataclass(frozen=True)
class Learner:
    """What every optimizer step of an iteration has at hand, whatever the objective."""

    model: LatentModel
    """With what is trained attached; its gradients are what a step adds to."""
    rollout: Rollout
    weights: Tensor
    """float32 [B], one a sample of the rollout, of `Objective.weigh`."""
    config: Config
    team: Team = Team()  # noqa: RUF009 - frozen
    """Of several processes, each adds and measures its part of a step, as a share of the whole."""
    anchored: bool = False
    """Whether the old policy is the present one, so that every ratio is 1: the only update of an iteration whose
    stored log-probabilities are too coarse."""

    @property
    def settings(self) -> Any:
        """The objective's own settings, of its own class."""
        return self.config.objective


@dataclass
class UpdateMetrics:
    """What one optimizer step measured, by name: means over its transitions, and the largest ratio drift."""

    values: dict[str, float] = field(default_factory=dict)

    def add(self, share: float, metrics: Mapping[str, Tensor | float]) -> None:
        """Count the metrics of a share of the step's transitions in."""
        for name, measured in metrics.items():
            value, known = float(measured), self.values.get(name, 0.0)
            if name != LARGEST:
                self.values[name] = known + share * value
            elif not math.isnan(known):  # max() would drop NaN
                self.values[name] = value if math.isnan(value) else max(known, value)


def average_metrics(records: list[UpdateMetrics]) -> dict[str, float]:
    """Average the metrics of an iteration's optimizer steps, which are of as many samples each; of none none."""
    if not records:
        return {}
    return {
        name: sum(record.values[name] for record in records) / len(records)
        for name in records[0].values
        if name != LARGEST
    }
