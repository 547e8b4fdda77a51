"""The step that the policy gradients share, and REBEL's second pass: a weighted loss of single transitions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlcm_cli.objectives import BACKWARD_FORWARDS, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.core.trajectory import Transitions
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch
    from rlcm_cli.learning.replay import Replay

    Loss = Callable[[Tensor, Tensor, Tensor], ObjectiveResult]
    """(log-probabilities, old ones, weights of the samples, all float32 [N]) → loss, a mean over transitions."""
    PartLoss = Callable[[Replay, Transitions, Tensor], ObjectiveResult]
    """(what the present policy says of N transitions, these, weights of their samples) → loss, a mean over them."""

STEP_POWERS = {"none": 0, "noise": 1, "variance": 2}
"""`train.step_weights` → the power of the standard deviation that an action's weight is in proportion to.

All losses are linear in the weight of a sample, up to its sign, so that this one is a factor of it.
"""
METRICS = (
    Metric(
        "ratio", "Probability ratio", "Mean of π / π_old over the actions; 1 with one optimizer step an iteration."
    ),
    Metric("approx_kl", "Approximate KL", "From the policy that drew the images, over an iteration's updates."),
    Metric("loss", "Loss", "What an optimizer step descends; its level has no meaning."),
    Metric("ratio_drift", "Ratio drift", "Largest |ratio − 1| before the first update: only rounding."),
)
POLICY_KL = Metric(
    "policy_kl", "KL to the old policy", "Of the Gaussians of a call, in closed form, over an iteration's updates."
)
CLIP_FRACTION = Metric("clip_fraction", "Clip fraction", "Share of the actions whose ratio is outside the clip range.")


@dataclass(frozen=True)
class Shift:
    """How far the present policy is from the one that drew, at N stored actions. All float32 [N]."""

    log_ratios: Tensor
    """Log-probability of the action less that of the old policy; carries the gradient."""
    kl: Tensor
    """KL divergence of the two Gaussians, of the same reduction over latents; carries the gradient."""
    std: Tensor
    """Standard deviation of both."""
    gains: Tensor
    """How far the mean goes with the model's output: |b| of the call."""


def accumulate_loss(learner: Learner, minibatch: Minibatch, loss: Loss) -> UpdateMetrics:
    """Add the gradient of a loss of log-probabilities; of trajectories without actions there is none.

    The result depends on the micro-batch size only by rounding: each part counts by its number of transitions. Of
    several processes, each adds and measures its part of the transitions, as a share of all of them.
    """
    return _accumulate(learner, minibatch, functools.partial(_score, learner, loss))


def accumulate_shift(
    learner: Learner, minibatch: Minibatch, loss: Callable[[Shift, Tensor], ObjectiveResult]
) -> UpdateMetrics:
    """Add the gradient of a loss of means, (shift, weights of the samples) → loss, as `accumulate_loss` does.

    The old policy predicts its means again, so that both are of the same numerics in any dtype, and no
    log-probability of the store counts. The objective needs `Need.OLD_POLICY`.
    """
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import LARGEST

    def loss_of(replayed: Replay, part: Transitions, weights: Tensor) -> ObjectiveResult:
        result = loss(measure_shift(learner, replayed, part), weights)
        # Means of one ruler agree before the first update by themselves; whether replaying agrees with drawing, only
        # the stored log-probabilities tell.
        drift = ((replayed.log_probs_N.detach() - part.log_probs_N).exp() - 1).abs().max()
        return ObjectiveResult(result.loss, {**result.metrics, LARGEST: drift})

    return _accumulate(learner, minibatch, loss_of)


def measure_shift(learner: Learner, replayed: Replay, part: Transitions) -> Shift:
    """Compare the present policy's Gaussians with those of the policy that drew, at stored transitions."""
    from rlcm_cli.core.gaussian import gaussian_kl, gaussian_log_ratio
    from rlcm_cli.learning.replay import predict_transition

    new, reduction = replayed.gaussian, learner.rollout.manifest.reduction
    with learner.old_policy():
        states, calls = part.states_NCHW, part.calls_N
        old = predict_transition(learner.model, learner.rollout, states, calls, replayed.conditioning)
    gains = learner.rollout.schedule.output_coef.abs().to(new.mean)
    return Shift(
        gaussian_log_ratio(part.actions_NCHW, new.mean, old.mean, new.std, reduction),
        gaussian_kl(new.mean, old.mean, new.std, reduction),
        new.std.flatten(),
        gains[part.calls_N],
    )


def _accumulate(learner: Learner, minibatch: Minibatch, loss_of: PartLoss) -> UpdateMetrics:
    from rlcm_cli.core.trajectory import flatten_transitions
    from rlcm_cli.learning.learner import LARGEST, UpdateMetrics

    transitions = flatten_transitions(learner.rollout.trajectories, minibatch.samples_M, minibatch.steps_MK)
    if not len(transitions):  # a single call has no action: only the last step is trained
        return UpdateMetrics({LARGEST: 0.0})
    return _add_gradient(learner, transitions, learner.weights, loss_of)


def add_gradient(learner: Learner, transitions: Transitions, weights: Tensor, loss: Loss) -> UpdateMetrics:
    """Add the gradient of a loss of transitions, of the KL penalty and the teacher's term, a micro-batch at a time.

    `weights`: float32 [B], one a sample of the rollout.
    """
    return _add_gradient(learner, transitions, weights, functools.partial(_score, learner, loss))


def _add_gradient(learner: Learner, transitions: Transitions, weights: Tensor, loss_of: PartLoss) -> UpdateMetrics:
    import torch

    from rlcm_cli.core.gaussian import gaussian_kl
    from rlcm_cli.learning.learner import UpdateMetrics
    from rlcm_cli.learning.loss_scale import LossScale
    from rlcm_cli.learning.replay import micro_batches, predict_transition, replay

    model, rollout, settings = learner.model, learner.rollout, learner.config.train
    record = UpdateMetrics()
    on_device = weights.to(model.device)
    of_calls = rollout.schedule.weigh_calls(STEP_POWERS[settings.step_weights]).to(on_device)
    values = len(transitions)
    if rollout.manifest.reduction == "mean":
        values *= transitions.states_NCHW[0].numel()
    scale = LossScale(model, values)

    def compute(share: float, part: Transitions) -> tuple[Tensor, None, dict[str, Tensor]]:
        replayed = replay(model, rollout, part)
        result = loss_of(replayed, part, of_calls[part.calls_N] * on_device[part.samples_N])
        loss, metrics = result.loss, dict(result.metrics)
        if settings.kl_weight:
            with torch.no_grad(), model.trained.base_model(model):
                base = predict_transition(model, rollout, part.states_NCHW, part.calls_N, replayed.conditioning)
            kl = gaussian_kl(
                replayed.gaussian.mean, base.mean, replayed.gaussian.std, rollout.manifest.reduction
            ).mean()
            loss = loss + settings.kl_weight * kl
            metrics["kl_to_base"] = kl.detach()
        if learner.teacher is not None:
            distance = learner.teacher.measure_distance(
                model, rollout, replayed.output_NCHW, part.states_NCHW, part.calls_N, part.samples_N
            ).mean()
            loss = loss + learner.teacher.weight * distance
            metrics["teacher_distance"] = distance.detach()
        return share * loss, None, {"loss": loss.detach(), **metrics}

    for share, part in micro_batches(model, transitions, learner.config.runtime.micro_batch_size, learner.processes):
        record.add(share, scale.add_gradient(functools.partial(compute, share, part)))
    record.add(1, scale.metrics())
    return record


def _score(learner: Learner, loss: Loss, replayed: Replay, part: Transitions, weights: Tensor) -> ObjectiveResult:
    """Return a loss of log-probabilities.

    Where the old policy is the present one, every ratio is 1, and the gradient that of log π; `ratio_drift` remains
    that of replaying to drawing.
    """
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import LARGEST

    log_probs = replayed.log_probs_N
    if not learner.old_is_present:
        return loss(log_probs, part.log_probs_N, weights)
    result = loss(log_probs, log_probs.detach(), weights)
    drift = ((log_probs.detach() - part.log_probs_N).exp() - 1).abs().max()
    return ObjectiveResult(result.loss, {**result.metrics, LARGEST: drift})


def count_forwards(config: Config, actions: int) -> int:
    """Count the forwards of one pass over the trained actions of a sample, and of its backward pass."""
    passes = 1 + BACKWARD_FORWARDS + bool(config.train.kl_weight) + bool(config.teacher.weight)
    return config.train.trained_actions(actions) * config.train.inner_epochs * passes


def count_shift_forwards(config: Config, actions: int) -> int:
    """Count the forwards of `count_forwards`, and those of the old policy."""
    return count_forwards(config, actions) + config.train.trained_actions(actions) * config.train.inner_epochs
