"""PPO: the clipped surrogate (arXiv 1707.06347), as DDPO_IS and RLCM train with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import Need, Objective
from rlcm_cli.objectives._policy_gradient import CLIP_FRACTION, METRICS, accumulate_loss, count_forwards
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class PpoSettings(Section):
    """PPO: the clipped probability ratio times the advantage, over several optimizer steps per iteration."""

    kind: Literal["ppo"] = "ppo"
    clip_range: PositiveFloat = 1e-4
    """How far the probability ratio of an action may be from 1 before its gradient is cut. The papers' 1e-4 belongs
    to log-probabilities that are means over the latents."""


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the clipped surrogate over a minibatch's transitions."""
    from rlcm_cli.core.objectives import ppo_clip

    def loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> ObjectiveResult:
        return ppo_clip(log_probs, old_log_probs, advantages, learner.settings.clip_range)

    return accumulate_loss(learner, minibatch, loss)


OBJECTIVE = Objective(
    settings=PpoSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=(*METRICS, CLIP_FRACTION),
    needs=frozenset({Need.ACTIONS, Need.OLD_LOG_PROBS}),
    clip_range=lambda settings: settings.clip_range,
)
