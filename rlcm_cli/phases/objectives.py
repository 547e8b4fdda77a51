"""The objectives by name: what weight each sample has in an update, and the loss of its transitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from rlcm_cli.config import Objective, TrainSettings
from rlcm_cli.core.objectives import ObjectiveResult, ppo_clip, reinforce, rwr_sparse_weights, rwr_weights

Loss = Callable[[Tensor, Tensor, Tensor], ObjectiveResult]
"""(log-probabilities, old ones, weights of the samples, all float32 [N]) → loss, a mean over transitions."""


@dataclass(frozen=True)
class ObjectiveParts:
    """An objective, as training takes it."""

    weigh: Callable[[Tensor], Tensor]
    """Advantages of a round, float32 [B] → weights, float32 [B]."""
    loss: Loss
    paired: bool = False
    """Weights come from pairs of whole trajectories under the present policy (`rebel_weights`): a pass of its own."""


def choose_objective(settings: TrainSettings) -> ObjectiveParts:
    """Give the objective of a configuration."""

    def clip(advantages: Tensor) -> Tensor:
        largest = settings.advantage_clip or math.inf
        return advantages.clamp(-largest, largest)

    def clipped_ratio(log_probs: Tensor, old_log_probs: Tensor, weights: Tensor) -> ObjectiveResult:
        return ppo_clip(log_probs, old_log_probs, weights, settings.clip_range)

    # `reinforce` is a mean over transitions, so that weights which sum to 1 are multiplied by their number.
    parts: Mapping[Objective, ObjectiveParts] = {
        "ppo": ObjectiveParts(clip, clipped_ratio),
        "grpo": ObjectiveParts(clip, clipped_ratio),
        "reinforce": ObjectiveParts(clip, reinforce),
        "rebel": ObjectiveParts(clip, reinforce, paired=True),
        "rwr": ObjectiveParts(lambda values: len(values) * rwr_weights(clip(values), settings.rwr_beta), reinforce),
        "rwr-sparse": ObjectiveParts(
            lambda values: len(values) * rwr_sparse_weights(values, settings.rwr_share), reinforce
        ),
    }
    return parts[settings.objective]
