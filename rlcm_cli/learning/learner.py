"""What an objective's step has at hand, and what it measures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.learning.teacher import Teacher
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.weights import clone_weights, exchanged_weights
from rlcm_cli.objectives import Need, find_objective
from rlcm_cli.processes.job import Processes

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
    processes: Processes = Processes()
    """Of several processes, each adds and measures its part of a step, as a share of the whole."""
    old_is_present: bool = False
    """Whether the old policy is the present one, so that every ratio is 1: the only update of an iteration whose
    stored log-probabilities are too coarse."""
    old_weights: Mapping[str, Tensor] | None = None
    """The trained weights of the policy that drew, by name, on the device, where the objective asks for them."""
    teacher: Teacher | None = None
    """Whose predicted images the policy's are drawn towards, in addition to the objective."""
    pairs: Tensor | None = None
    """Rows of the rollout, the better and the worse of each pair of a table, int64 [P, 2]; None: rewards say so."""

    @contextlib.contextmanager
    def old_policy(self) -> Iterator[None]:
        """Let the model predict, without a gradient, as the policy that drew did, within the block."""
        if self.old_weights is None:
            raise RuntimeError("the objective does not state Need.OLD_POLICY, so that its weights are not kept")
        with torch.no_grad(), exchanged_weights(self.model.trained.parameters(self.model), self.old_weights):
            yield

    @property
    def settings(self) -> Any:
        """The objective's settings."""
        return self.config.objective


def copy_policy(model: LatentModel, config: Config) -> dict[str, Tensor] | None:
    """Return copies of the trained weights where the objective asks for the old policy, before they change."""
    if Need.OLD_POLICY not in find_objective(config).needs:
        return None
    return clone_weights(model.trained.parameters(model))


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
