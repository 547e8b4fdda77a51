"""REINFORCE: the plain score-function policy gradient (DDPO_SF of arXiv 2305.13301, section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import Need, Objective
from rlcm_cli.objectives._policy_gradient import METRICS, accumulate_loss, count_forwards
from rlcm_cli.sections import Section

if TYPE_CHECKING:
    from rlcm_cli.config import Config
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class ReinforceSettings(Section):
    """REINFORCE: the plain policy gradient, in one optimizer step per iteration."""

    kind: Literal["reinforce"] = "reinforce"


def check(config: Config) -> None:
    """Refuse whatever moves the policy away from the one that drew the samples before they are trained on."""
    train, samples = config.train, config.sample.samples
    if train.inner_epochs > 1 or (train.minibatch_size or samples) < samples:
        raise ValueError(
            "objective.kind reinforce is right only for samples of the policy itself, so for one optimizer step an "
            "iteration; leave train.minibatch_size and train.inner_epochs out, or use objective ppo"
        )
    if config.pretraining.own_steps:
        raise ValueError(
            "pretraining.own_steps moves the policy before its samples are trained on, and objective.kind reinforce "
            "does not correct for that; leave it at 0, or use objective ppo"
        )
    if config.sample.staleness:
        raise ValueError(
            "sample.staleness is 1, so that another policy draws than is trained, and objective.kind reinforce does "
            "not correct for that; leave it at 0, or use objective ppo"
        )


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the weighted log-likelihood of a minibatch's transitions."""
    from rlcm_cli.core.objectives import reinforce

    return accumulate_loss(learner, minibatch, reinforce)


OBJECTIVE = Objective(
    settings=ReinforceSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=METRICS,
    needs=frozenset({Need.ACTIONS, Need.OWN_SAMPLES}),
    check=check,
)
