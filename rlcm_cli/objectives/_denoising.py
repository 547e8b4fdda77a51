"""The step of objectives that look at drawn images only: their final latents, noised again and denoised."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcm_cli.objectives import BACKWARD_FORWARDS, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch
    from rlcm_cli.learning.renoising import NoisedImages

DISTANCE = Metric(
    "distance", "Distance from the old policy", "Mean squared difference of the predictions; 0 before an update."
)
LOSS = Metric("loss", "Loss", "What an optimizer step descends; its level has no meaning.")


@dataclass(frozen=True)
class Denoised:
    """Noised images and what policies predict of them, [N, C, h, w] float32."""

    images: NoisedImages
    new: Tensor
    """Of the policy that is trained, with a graph."""
    weights_N: Tensor
    """Of their samples, float32."""


Loss = Callable[[Denoised], "ObjectiveResult"]
"""A mean over the noised images, or over the pairs of the first half with the second."""


def accumulate_samples(learner: Learner, minibatch: Minibatch, times: int, loss_of: Loss) -> UpdateMetrics:
    """Add the gradient of a loss of a minibatch's samples, each noised at the times of several model calls."""
    from rlcm_cli.learning.renoising import draw_calls

    calls_MT = draw_calls(learner.rollout, minibatch.epoch, minibatch.samples_M, times)
    # All first times, then the second, as `flatten_transitions` lays transitions.
    rows = minibatch.samples_M.repeat(calls_MT.shape[1]).unsqueeze(1)
    return add_gradient(learner, minibatch.epoch, rows, calls_MT.T.flatten(), loss_of)


def add_gradient(learner: Learner, epoch: int, samples_IR: Tensor, calls_I: Tensor, loss_of: Loss) -> UpdateMetrics:
    """Add the gradient of a loss of I items, of the KL penalty and the teacher's term, a micro-batch at a time.

    The result depends on the micro-batch size by rounding only. Of several processes, each takes a part of the items.
    The penalty is the mean squared difference from the base model's predictions.

    Args:
        learner: Whose model is trained.
        epoch: The inner epoch, which the noise belongs to.
        samples_IR: int64, the samples of each item: one, or a pair, which shares the noise of the lower number.
        calls_I: int64, the model call whose time they are noised at.
        loss_of: The loss of some items, a mean over them; their first samples come first, then their second ones.
    """
    from rlcm_cli.learning.learner import UpdateMetrics
    from rlcm_cli.learning.loss_scale import LossScale
    from rlcm_cli.learning.renoising import noise_again

    model, rollout, settings = learner.model, learner.rollout, learner.config.train
    record, count = UpdateMetrics(), len(samples_IR)
    scale = LossScale(model, count * rollout.trajectories.latents_BSCHW[0, 0].numel())
    weights = learner.weights.to(model.device)

    def compute(items: slice) -> tuple[Tensor, None, dict[str, Tensor]]:
        samples_N = samples_IR[items].T.flatten()
        owners_I = samples_IR[items].amin(1)
        owners_N, calls_N = (part.repeat(samples_IR.shape[1]) for part in (owners_I, calls_I[items]))
        images = noise_again(model, rollout, epoch, samples_N, calls_N, owners_N)
        new = predict(learner, images)
        result = loss_of(Denoised(images, new, weights[samples_N.to(weights.device)]))
        loss, metrics = result.loss, dict(result.metrics)
        if settings.kl_weight:
            distance = (new - predict_base(learner, images)).square().mean()
            loss = loss + settings.kl_weight * distance
            metrics["kl_to_base"] = distance.detach()
        if learner.teacher is not None:
            taught = learner.teacher.measure_distance(
                model, rollout, new, images.latents_NCHW, calls_N, samples_N
            ).mean()
            loss = loss + learner.teacher.weight * taught
            metrics["teacher_distance"] = taught.detach()
        share = (items.stop - items.start) / count
        return share * loss, None, {"loss": loss.detach(), **metrics}

    own = learner.processes.part(count)
    size = max(1, learner.config.runtime.micro_batch_size // samples_IR.shape[1])
    for first in own[::size]:
        items = slice(first, min(first + size, own.stop))
        share = (items.stop - first) / count
        record.add(share, scale.add_gradient(functools.partial(compute, items)))
    record.add(1, scale.metrics())
    return record


def predict(learner: Learner, images: NoisedImages) -> Tensor:
    """Predict with the weights that the model has now, float32 [N, C, h, w].

    With the guidance that the images were drawn with: the guided prediction is the policy.
    """
    guidance = learner.rollout.manifest.schedule.guidance_scale
    output = learner.model.predict(images.latents_NCHW, images.timesteps_N, images.conditioning, guidance)
    return output.float()


def predict_old(learner: Learner, images: NoisedImages) -> Tensor:
    """Predict as the policy that drew the images, without a gradient."""
    with learner.old_policy():
        return predict(learner, images)


def predict_base(learner: Learner, images: NoisedImages) -> Tensor:
    """Predict as the model did before any training, without a gradient."""
    import torch

    with torch.no_grad(), learner.model.trained.base_model(learner.model):
        return predict(learner, images)


def check(config: Config) -> None:
    """Refuse settings that are of trajectories."""
    kind = config.objective.kind
    if config.train.timestep_fraction < 1:
        raise ValueError(
            f"objective.kind {kind} trains on no trajectories; leave train.timestep_fraction out, and say by "
            "objective.times at how many times each image is noised"
        )
    if config.last_step.mode == "noise":
        raise ValueError(
            f"last_step.mode noise is for policy gradients, and objective.kind {kind} would learn the noise; leave it "
            "out"
        )


def count_forwards(config: Config, others: int) -> int:
    """Count the forwards of denoising a sample at `objective.times` times, with its backward pass.

    `others`: predictions of each noised image by other policies, those of the KL penalty and the teacher apart.
    """
    settings: Any = config.objective
    times: int = min(settings.times, config.sample.steps)
    asked = others + bool(config.train.kl_weight) + bool(config.teacher.weight)
    return config.train.inner_epochs * times * (1 + BACKWARD_FORWARDS + asked)
