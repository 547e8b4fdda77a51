"""What an iteration's optimizer steps change, and what must hold of it afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import TrainSettings
from rlcm_cli.core.ema import average_weights
from rlcm_cli.errors import TrainingError
from rlcm_cli.learning.optimizer import clip_gradient
from rlcm_cli.models.latent_model import LatentModel


@dataclass
class Student:
    """What an iteration's optimizer steps change."""

    model: LatentModel
    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor] | None
    """Moving average of the weights, by name; None: none is kept."""
    old: Mapping[str, Tensor] | None = None
    """Weights that draw with the checkpoint that is trained, by name, on the CPU; None: its trained ones draw."""
    steps: int = 0
    """Optimizer steps taken."""

    def step(self, settings: TrainSettings, iteration: int) -> float:
        """Take an optimizer step along the gradient that is there, and return its norm before it was clipped.

        Raises `TrainingError` where it is infinite or NaN.
        """
        norm = clip_gradient(self.parameters.values(), settings)
        if not math.isfinite(norm):
            raise TrainingError(
                f"iteration {iteration + 1}: the gradient is {norm}; use --dtype bfloat16 or float32, or a "
                "smaller train.learning_rate"
            )
        self.optimizer.step()
        self.steps += 1
        if self.average is not None and settings.ema_decay is not None:
            self.average = average_weights(self.average, self.parameters, settings.ema_decay)
        return norm

    def check_weights(self, before: Mapping[str, Tensor], iteration: int, rate: float) -> None:
        """Raise `TrainingError` where the steps made a weight infinite or NaN, or changed none.

        `before`: the weights before the first of them, by name, on the CPU.
        """
        after = {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}
        broken = [name for name, weights in after.items() if not weights.isfinite().all()]
        if broken:
            raise TrainingError(
                f"iteration {iteration + 1}: the optimizer's steps made {len(broken)} of {len(after)} weights "
                f"infinite or NaN, such as {broken[0]}; nothing was published; use a smaller train.learning_rate (now "
                f"{rate:.3g})"
            )
        if all(torch.equal(before[name], weights) for name, weights in after.items()):
            raise TrainingError(
                f"iteration {iteration + 1}: {self.steps} optimizer steps changed no weight (rate {rate:.3g}): "
                "the gradient does not reach what is trained, or the rate is too small for the weights' dtype"
            )
