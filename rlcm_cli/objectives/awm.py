"""Advantage-weighted matching (arXiv 2509.25050): PPO's clip, with a denoising error in the place of log π."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import Need, Objective, _denoising
from rlcm_cli.objectives import _policy_gradient as policy_gradient
from rlcm_cli.sections import NonNegativeFloat, PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class AwmSettings(Section):
    """Advantage-weighted matching: images noised again; PPO with their denoising error in the place of log π."""

    kind: Literal["awm"] = "awm"
    clip_range: PositiveFloat = 1.0
    """How far the ratio of an image may be from 1 before its gradient is cut."""
    power: PositiveFloat = 0.25
    """Of the mean squared error: 1 is the error itself; with less, large ones count less."""
    level_power: NonNegativeFloat = 1.0
    """Of the noise level, which the error is weighed by; 0: all levels alike."""
    times: PositiveInt = 4
    """Model calls of the sampler at whose times each image is noised, drawn for each sample and epoch; at most
    all there are."""


def needs_old(config: Config) -> bool:
    """Return whether the policy may have moved from the one that drew: else every ratio is 1."""
    train, samples = config.train, config.sample.samples
    single = train.inner_epochs == 1 and (train.minibatch_size or samples) >= samples
    return not single or config.sample.staleness > 0 or config.pretraining.own_steps > 0


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the clipped surrogate over a minibatch's images, each noised at several times."""
    from rlcm_cli.core.denoising_losses import awm_log_probs
    from rlcm_cli.core.objectives import ppo_clip

    settings: AwmSettings = learner.settings
    compares = needs_old(learner.config)

    def loss(denoised: _denoising.Denoised) -> ObjectiveResult:
        images = denoised.images

        def log_probs(prediction: Tensor) -> Tensor:
            powers = {"power": settings.power, "level_power": settings.level_power}
            return awm_log_probs(prediction, images.target_NCHW, images.levels_N, **powers)

        new = log_probs(denoised.new)
        old = log_probs(_denoising.predict_old(learner, images)) if compares else new.detach()
        return ppo_clip(new, old, denoised.weights_N, settings.clip_range)

    return _denoising.accumulate_samples(learner, minibatch, settings.times, loss)


def count_forwards(config: Config, actions: int) -> int:
    """Count the forwards of a sample; those of the old policy where it may be another."""
    return _denoising.count_forwards(config, others=int(needs_old(config)))


OBJECTIVE = Objective(
    settings=AwmSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=(*policy_gradient.METRICS, policy_gradient.CLIP_FRACTION),
    needs=frozenset({Need.FINAL_LATENTS, Need.OLD_POLICY}),
    check=_denoising.check,
)
