"""GRPO: PPO's clipped surrogate with advantages relative to a group (arXiv 2402.03300, DanceGRPO 2505.07818)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import AdvantageRules, Need, Objective
from rlcm_cli.objectives._policy_gradient import CLIP_FRACTION, METRICS, accumulate_loss, count_forwards
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class GrpoSettings(Section):
    """GRPO: PPO's clipped ratio, with each image compared with the others of its group."""

    kind: Literal["grpo"] = "grpo"
    clip_range: PositiveFloat = 1e-4
    """How far the probability ratio of an action may be from 1 before its gradient is cut."""


def check(config: Config) -> None:
    """Refuse advantages that compare with anything but a group."""
    if config.advantage_kind not in ("group", "leave-one-out"):
        raise ValueError(
            f"objective.kind grpo compares the images of a group, and train.advantages is {config.train.advantages}; "
            "leave it out, or use objective ppo"
        )


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the clipped surrogate over a minibatch's transitions."""
    from rlcm_cli.core.objectives import ppo_clip

    def loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> ObjectiveResult:
        return ppo_clip(log_probs, old_log_probs, advantages, learner.settings.clip_range)

    return accumulate_loss(learner, minibatch, loss)


OBJECTIVE = Objective(
    settings=GrpoSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=(*METRICS, CLIP_FRACTION),
    needs=frozenset({Need.ACTIONS, Need.OLD_LOG_PROBS}),
    advantages=AdvantageRules(admitted=("group", "leave-one-out")),
    check=check,
    clip_range=lambda settings: settings.clip_range,
)
