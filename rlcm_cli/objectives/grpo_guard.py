"""GRPO-Guard: GRPO with ratios of mean 1 and equal spread at every call (arXiv 2510.22319)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import AdvantageRules, Metric, Need, Objective
from rlcm_cli.objectives._policy_gradient import (
    CLIP_FRACTION,
    METRICS,
    POLICY_KL,
    accumulate_shift,
    count_shift_forwards,
)
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch
    from rlcm_cli.objectives._policy_gradient import Shift


class GrpoGuardSettings(Section):
    """GRPO-Guard: GRPO with a ratio that is 1 in the mean at every call, and calls that count alike."""

    kind: Literal["grpo-guard"] = "grpo-guard"
    clip_range: PositiveFloat = 4e-6
    """How far the normalised ratio may be from 1 before its gradient is cut. It is the shift of the mean times the
    noise, averaged over D latents, so it shrinks with √D: the published 2e-6 and 4e-6 are for the 65,536 of a
    512-pixel image."""


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the guarded surrogate over a minibatch's transitions."""
    from rlcm_cli.core.objectives import grpo_guard

    def loss(shift: Shift, advantages: Tensor) -> ObjectiveResult:
        clip_range = learner.settings.clip_range
        return grpo_guard(shift.log_ratios, shift.kl, shift.std, shift.gains, advantages, clip_range)

    return accumulate_shift(learner, minibatch, loss)


OBJECTIVE = Objective(
    settings=GrpoGuardSettings,
    accumulate=accumulate,
    forwards=count_shift_forwards,
    metrics=(
        *METRICS,
        Metric("guarded_ratio", "Normalised ratio", "Mean over the actions; what the objective clips."),
        POLICY_KL,
        CLIP_FRACTION,
    ),
    needs=frozenset({Need.ACTIONS, Need.OLD_POLICY}),
    advantages=AdvantageRules(admitted=("group", "leave-one-out")),
)
