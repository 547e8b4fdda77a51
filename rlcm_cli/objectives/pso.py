"""PSO (arXiv 2410.03190): the trajectory of the better image of a prompt gets likelier, that of the worse one less."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlcm_cli.objectives import Need, Objective, _preferences
from rlcm_cli.objectives import _policy_gradient as policy_gradient
from rlcm_cli.sections import PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.core.trajectory import Transitions
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class PsoSettings(_preferences.PairSettings):
    """PSO: the trajectory of the better image of a pair gets likelier than the worse one's, next to the base model."""

    kind: Literal["pso"] = "pso"
    beta: PositiveFloat = 16.7
    """How strongly the policy is held at the base model. The published 50 is of single actions, three of which are a
    trajectory there; this is a third of it."""
    clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How far the ratio of an action to the base model may be from 1 before its gradient is cut."""


def check(config: Config) -> None:
    """Refuse torn groups and parts of trajectories."""
    _preferences.check(config)
    if config.train.timestep_fraction < 1 or config.train.actions is not None:
        raise ValueError(
            "objective.kind pso needs whole trajectories; leave train.timestep_fraction at 1 and train.actions out"
        )
    if config.train.step_weights != "none":
        raise ValueError(
            "objective.kind pso sums the log-ratios of a trajectory, in which every action counts alike; leave "
            "train.step_weights out"
        )


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the loss of a minibatch's pairs, in two passes, as REBEL does.

    The published code takes each action for a trajectory of its own; by Jensen's inequality, the mean of their losses,
    each with A times the β of here, is never below the loss of the whole one.
    """
    import torch

    from rlcm_cli.core.preferences import clip_log_ratios, preference_loss, preference_weights, trajectory_margins
    from rlcm_cli.core.trajectory import flatten_transitions
    from rlcm_cli.learning.learner import LARGEST, UpdateMetrics
    from rlcm_cli.learning.preferences import pick_pairs

    actions = learner.rollout.trajectories.actions
    if not actions:
        return UpdateMetrics({LARGEST: 0.0})
    pairs = pick_pairs(learner, minibatch.samples_M)
    if not len(pairs):
        return UpdateMetrics({metric.name: 0.0 for metric in OBJECTIVE.metrics})
    settings: PsoSettings = learner.settings
    # A table may have a sample in several pairs, whose weights then add up.
    samples, rows = torch.unique(pairs, return_inverse=True) if learner.pairs is not None else lay_out(pairs)
    whole = torch.arange(actions).expand(len(samples), -1)
    transitions = flatten_transitions(learner.rollout.trajectories, samples, whole)
    log_probs, base = replay_both(learner, transitions)
    by_action = clip_log_ratios(log_probs - base, settings.clip_range)
    log_ratios = by_action.view(-1, len(samples)).sum(0)
    weights = torch.zeros_like(learner.weights)
    # The second pass averages over the transitions.
    weights[samples] = len(transitions) * preference_weights(log_ratios, rows, settings.beta)
    against_base = dataclasses.replace(transitions, log_probs_N=base)

    def loss(log_probs: Tensor, of_base: Tensor, given: Tensor) -> ObjectiveResult:
        return weigh_ratios(log_probs, of_base, given, settings.clip_range)

    record = policy_gradient.add_gradient(learner, against_base, weights, loss)
    # The second pass's loss is none: only its gradient is PSO's.
    result = preference_loss(trajectory_margins(log_ratios, rows, settings.beta))
    share = len(learner.processes.part(len(transitions))) / len(transitions)
    for name, value in {"loss": result.loss, **result.metrics}.items():
        record.values[name] = value.item() * share
    record.values[LARGEST] = ((log_probs - transitions.log_probs_N).exp() - 1).abs().max().item()
    return record


def lay_out(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples of pairs that have none in common, and where among them those of each pair are."""
    import torch

    return pairs.flatten(), torch.arange(pairs.numel()).view(-1, 2)


def replay_both(learner: Learner, transitions: Transitions) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of stored actions under the policy and the base model, float32 [N]."""
    from rlcm_cli.learning.replay import replay_log_probs

    size = learner.config.runtime.micro_batch_size
    given = (learner.model, learner.rollout, transitions, size, learner.processes)
    own = replay_log_probs(*given)
    with learner.model.trained.base_model(learner.model):
        return own, replay_log_probs(*given)


def weigh_ratios(log_probs: Tensor, base: Tensor, weights: Tensor, clip_range: float) -> ObjectiveResult:
    """Return the mean of the weighted log-ratios of actions, all float32 [N], and the share of those that are cut."""
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.core.preferences import clip_log_ratios

    clipped = clip_log_ratios(log_probs - base, clip_range)
    outside = clipped.detach() != (log_probs - base).detach()
    return ObjectiveResult((weights * clipped).mean(), {"clip_fraction": outside.float().mean()})


def count_forwards(config: Config, actions: int) -> float:
    """Count the policy gradient's forwards, and those of the two passes before it."""
    first = 2 * config.train.trained_actions(actions) * config.train.inner_epochs
    return _preferences.share_of_samples(config) * (policy_gradient.count_forwards(config, actions) + first)


OBJECTIVE = Objective(
    settings=PsoSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=(*policy_gradient.METRICS[2:], _preferences.ACCURACY, policy_gradient.CLIP_FRACTION),
    needs=frozenset({Need.ACTIONS, Need.PAIRS, Need.TRAJECTORY_PAIRS}),
    advantages=_preferences.ADVANTAGES,
    check=check,
    pairs_file=_preferences.pairs_file,
)
