"""The step that PPO, GRPO, REINFORCE and RWR share, and REBEL's second pass: a weighted loss of single transitions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from rlcm_cli.objectives import BACKWARD_FORWARDS, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.core.trajectory import Transitions
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch

    Loss = Callable[[Tensor, Tensor, Tensor], ObjectiveResult]
    """(log-probabilities, old ones, weights of the samples, all float32 [N]) → loss, a mean over transitions."""

METRICS = (
    Metric(
        "ratio", "Probability ratio", "Mean of π / π_old over the actions; 1 with one optimizer step an iteration."
    ),
    Metric("approx_kl", "Approximate KL", "From the policy that drew the images, over an iteration's updates."),
    Metric("loss", "Loss", "What an optimizer step descends; its level has no meaning."),
    Metric("ratio_drift", "Ratio drift", "Largest |ratio − 1| before the first update: only rounding."),
)
CLIP_FRACTION = Metric("clip_fraction", "Clip fraction", "Share of the actions whose ratio is outside the clip range.")


def accumulate_loss(learner: Learner, minibatch: Minibatch, loss: Loss) -> UpdateMetrics:
    """Add the gradient of a loss of transitions; of trajectories without actions there is none.

    The result depends on the micro-batch size only by rounding: each part counts by its number of transitions. Of
    several processes, each adds and measures its part of the transitions, as a share of all of them.
    """
    from rlcm_cli.core.trajectory import flatten_transitions
    from rlcm_cli.learning.learner import LARGEST, UpdateMetrics

    transitions = flatten_transitions(learner.rollout.trajectories, minibatch.samples_M, minibatch.steps_MK)
    if not len(transitions):  # a single call has no action: only the last step is trained
        return UpdateMetrics({LARGEST: 0.0})
    return add_gradient(learner, transitions, learner.weights, loss)


def add_gradient(learner: Learner, transitions: Transitions, weights: Tensor, loss_of: Loss) -> UpdateMetrics:
    """Add the gradient of a loss of transitions, and of the KL penalty where there is one, a micro-batch at a time.

    `weights`: float32 [B], one a sample of the rollout.
    """
    import torch

    from rlcm_cli.core.gaussian import gaussian_kl
    from rlcm_cli.learning.learner import UpdateMetrics
    from rlcm_cli.learning.loss_scale import LossScale
    from rlcm_cli.learning.replay import micro_batches, predict_transition, replay

    model, rollout, settings = learner.model, learner.rollout, learner.config.train
    if learner.old_is_present:
        loss_of = take_present_as_old(loss_of)
    record = UpdateMetrics()
    on_device = weights.to(model.device)
    values = len(transitions)
    if rollout.manifest.reduction == "mean":
        values *= transitions.states_NCHW[0].numel()
    scale = LossScale(model, values)

    def compute(share: float, part: Transitions) -> tuple[Tensor, None, dict[str, Tensor]]:
        replayed = replay(model, rollout, part)
        result = loss_of(replayed.log_probs_N, part.log_probs_N, on_device[part.samples_N])
        loss, metrics = result.loss, dict(result.metrics)
        if settings.kl_weight:
            with torch.no_grad(), model.trained.base_model(model):
                base = predict_transition(model, rollout, part.states_NCHW, part.calls_N, replayed.conditioning)
            kl = gaussian_kl(
                replayed.gaussian.mean, base.mean, replayed.gaussian.std, rollout.manifest.reduction
            ).mean()
            loss = loss + settings.kl_weight * kl
            metrics["kl_to_base"] = kl.detach()
        return share * loss, None, {"loss": loss.detach(), **metrics}

    for share, part in micro_batches(model, transitions, learner.config.runtime.micro_batch_size, learner.processes):
        record.add(share, scale.add_gradient(functools.partial(compute, share, part)))
    record.add(1, scale.metrics())
    return record


def take_present_as_old(loss_of: Loss) -> Loss:
    """Return a loss whose old policy is the present one: every ratio is 1, and its gradient that of log π.

    Its `ratio_drift` remains that of replaying to drawing.
    """
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import LARGEST

    def loss(log_probs: Tensor, old_log_probs: Tensor, weights: Tensor) -> ObjectiveResult:
        result = loss_of(log_probs, log_probs.detach(), weights)
        drift = ((log_probs.detach() - old_log_probs).exp() - 1).abs().max()
        return ObjectiveResult(result.loss, {**result.metrics, LARGEST: drift})

    return loss


def count_forwards(config: Config, actions: int) -> int:
    """Count the forwards of one pass over the trained actions of a sample, and of its backward pass."""
    passes = 1 + BACKWARD_FORWARDS + bool(config.train.kl_weight)
    return config.train.trained_actions(actions) * config.train.inner_epochs * passes
