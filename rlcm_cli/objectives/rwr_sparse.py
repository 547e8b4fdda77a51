"""RWR-sparse: the likelihood of the best images only (arXiv 2305.13301, section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlcm_cli.objectives import AdvantageRules, Need, Objective
from rlcm_cli.objectives._policy_gradient import METRICS, accumulate_loss, count_forwards
from rlcm_cli.sections import Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class RwrSparseSettings(Section):
    """RWR-sparse: the likelihood of the best of an iteration's images, all weighted alike."""

    kind: Literal["rwr-sparse"] = "rwr-sparse"
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the images, the best, that is kept."""


def weigh(settings: RwrSparseSettings, advantages: Tensor) -> Tensor:
    """Return weights of mean 1: the step is a mean over transitions, so weights that sum to 1 count B times."""
    from rlcm_cli.core.objectives import rwr_sparse_weights

    return len(advantages) * rwr_sparse_weights(advantages, settings.share)


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the weighted log-likelihood of a minibatch's transitions."""
    from rlcm_cli.core.objectives import reinforce

    return accumulate_loss(learner, minibatch, reinforce)


OBJECTIVE = Objective(
    settings=RwrSparseSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=METRICS,
    needs=frozenset({Need.ACTIONS}),
    # Only the order counts, and a clip would make ties of the best.
    advantages=AdvantageRules(
        admitted=("per-prompt", "batch", "group", "leave-one-out", "none"), clipped=False, differences_only=True
    ),
    weigh=weigh,
)
