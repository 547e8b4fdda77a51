"""RWR: reward-weighted regression (arXiv 2305.13301, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import AdvantageRules, Need, Objective
from rlcm_cli.objectives._policy_gradient import METRICS, accumulate_loss, count_forwards
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class RwrSettings(Section):
    """RWR: the likelihood of an iteration's images, each weighted by exp(beta · advantage)."""

    kind: Literal["rwr"] = "rwr"
    beta: PositiveFloat = 2.0
    """Weights are proportional to exp(beta · advantage), so it depends on the unit of the advantages. The default is
    for a variance of 1, where the published 0.2, which is of rewards in kB, weighs all nearly alike."""


def weigh(settings: RwrSettings, advantages: Tensor) -> Tensor:
    """Return weights of mean 1: the step is a mean over transitions, so weights that sum to 1 count B times."""
    from rlcm_cli.core.objectives import rwr_weights

    return len(advantages) * rwr_weights(advantages, settings.beta)


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the weighted log-likelihood of a minibatch's transitions."""
    from rlcm_cli.core.objectives import reinforce

    return accumulate_loss(learner, minibatch, reinforce)


OBJECTIVE = Objective(
    settings=RwrSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=METRICS,
    needs=frozenset({Need.ACTIONS}),
    advantages=AdvantageRules(
        admitted=("per-prompt", "batch", "group", "leave-one-out", "none"), differences_only=True
    ),
    weigh=weigh,
)
