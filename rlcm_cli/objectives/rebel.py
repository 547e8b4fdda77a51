"""REBEL: differences of rewards regressed on differences of log-ratios (arXiv 2404.16767, algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import AdvantageRules, Need, Objective
from rlcm_cli.objectives import _policy_gradient as policy_gradient
from rlcm_cli.sections import PositiveFloat, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.trajectory import Transitions
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class RebelSettings(Section):
    """REBEL: differences of advantages between two images of a prompt, regressed on those of their log-ratios."""

    kind: Literal["rebel"] = "rebel"
    rebel_lr: PositiveFloat = 1.0
    """The advantage that a trajectory's log-ratio of 1 stands for; the paper's 1/η."""


def check(config: Config) -> None:
    """Refuse whatever leaves no whole pairs of whole trajectories."""
    group, minibatch = config.sample.group_size, config.train.minibatch_size or config.sample.samples
    if group % 2:
        raise ValueError(
            f"objective.kind rebel compares pairs of images of a prompt; set sample.group_size (now {group}) to an "
            "even number"
        )
    if minibatch % group:
        raise ValueError(
            f"train.minibatch_size is {minibatch}, not a multiple of sample.group_size {group}, so that pairs would "
            "be torn"
        )
    if config.train.timestep_fraction < 1 or config.train.actions is not None:
        raise ValueError(
            "objective.kind rebel needs whole trajectories; leave train.timestep_fraction at 1 and train.actions out"
        )
    if config.train.step_weights != "none":
        raise ValueError(
            "objective.kind rebel sums the log-ratios of a trajectory, in which every action counts alike; leave "
            "train.step_weights out"
        )


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the regression over a minibatch's pairs, in two passes.

    The first, without gradient, takes the log-ratios of whole trajectories; the loss is then linear in the
    log-probabilities of single actions, with the weights of `rebel_weights`, and the second adds its gradient.
    """
    import torch

    from rlcm_cli.core.objectives import neighbour_pairs, rebel_loss, rebel_weights, reinforce
    from rlcm_cli.core.trajectory import flatten_transitions
    from rlcm_cli.learning.learner import LARGEST, UpdateMetrics

    transitions = flatten_transitions(learner.rollout.trajectories, minibatch.samples_M, minibatch.steps_MK)
    if not len(transitions):  # a single call has no action: only the last step is trained
        return UpdateMetrics({LARGEST: 0.0})
    pairs = neighbour_pairs(learner.rollout.groups[minibatch.samples_M])
    log_ratios = sum_log_ratios(learner, minibatch, transitions)
    given, rebel_lr = learner.weights[minibatch.samples_M], learner.settings.rebel_lr
    by_sample = torch.zeros_like(learner.weights)
    # `reinforce` averages over the transitions and descends on the negative.
    by_sample[minibatch.samples_M] = -len(transitions) * rebel_weights(log_ratios, given, pairs, rebel_lr)
    record = policy_gradient.add_gradient(learner, transitions, by_sample, reinforce)
    result = rebel_loss(log_ratios, given, pairs, rebel_lr)
    # The second pass's loss is none: only its gradient is REBEL's. Its ratios are of single actions, which is what
    # the check before the first update wants.
    record.values["loss"] = result.loss.item() * len(learner.processes.part(len(transitions))) / len(transitions)
    return record


def sum_log_ratios(learner: Learner, minibatch: Minibatch, transitions: Transitions) -> Tensor:
    """Return each sample's log-ratio of new to old policy over its whole trajectory, float32 [M]."""
    from rlcm_cli.learning.replay import replay_log_probs

    size = learner.config.runtime.micro_batch_size
    log_probs = replay_log_probs(learner.model, learner.rollout, transitions, size, learner.processes)
    return (log_probs - transitions.log_probs_N).view(-1, len(minibatch.samples_M)).sum(0)


def count_forwards(config: Config, actions: int) -> int:
    """Count the policy gradient's forwards, and those of the pass before it."""
    first = config.train.trained_actions(actions) * config.train.inner_epochs
    return policy_gradient.count_forwards(config, actions) + first


OBJECTIVE = Objective(
    settings=RebelSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=policy_gradient.METRICS,
    needs=frozenset({Need.ACTIONS, Need.OLD_LOG_PROBS, Need.TRAJECTORY_PAIRS}),
    advantages=AdvantageRules(
        admitted=("per-prompt", "batch", "group", "leave-one-out", "none"), differences_only=True
    ),
    check=check,
)
