"""Flow-DPPO: a trust region by the exact divergence of the policies, in place of PPO's clipping (arXiv 2606.11025)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import Metric, Need, Objective
from rlcm_cli.objectives._policy_gradient import METRICS, POLICY_KL, accumulate_shift, count_shift_forwards
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch
    from rlcm_cli.objectives._policy_gradient import Shift


class DppoSettings(Section):
    """Flow-DPPO: the probability ratio times the advantage, cut where the policy is too far from the one that drew."""

    kind: Literal["dppo"] = "dppo"
    max_kl: PositiveFloat = 1e-5
    """KL divergence between the Gaussians of a call, before and after the iteration's updates, from which on an
    action's gradient is cut if it leads further away. It is a mean over the latents, as log-probabilities are."""


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the masked surrogate over a minibatch's transitions."""
    from rlcm_cli.core.objectives import dppo

    def loss(shift: Shift, advantages: Tensor) -> ObjectiveResult:
        return dppo(shift.log_ratios, shift.kl, advantages, learner.settings.max_kl)

    return accumulate_shift(learner, minibatch, loss)


OBJECTIVE = Objective(
    settings=DppoSettings,
    accumulate=accumulate,
    forwards=count_shift_forwards,
    metrics=(
        *METRICS,
        POLICY_KL,
        Metric("masked_fraction", "Masked fraction", "Share of the actions that are too far away and lead further."),
    ),
    needs=frozenset({Need.ACTIONS, Need.OLD_POLICY}),
)
