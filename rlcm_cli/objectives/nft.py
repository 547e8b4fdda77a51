"""DiffusionNFT: drawn images denoised, good ones approached and bad ones kept away from (arXiv 2509.16117)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rlcm_cli.objectives import AdvantageRules, Need, Objective, _denoising
from rlcm_cli.sections import PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch

NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class NftSettings(Section):
    """DiffusionNFT: images noised again; denoising approaches the good ones and turns away from the bad ones."""

    kind: Literal["nft"] = "nft"
    beta: PositiveFloat = 1.0
    """What the loss sees of the policy's difference from the old one: with 0.1 a tenth, so that it goes further."""
    advantage_range: PositiveFloat = 5.0
    """Advantage from which on an image counts as wholly good, and its negative as wholly bad."""
    times: PositiveInt = 4
    """Model calls of the sampler at whose times each image is noised, drawn for each sample and epoch; at most
    all there are."""
    old_share: Share = 0.5
    """How much the policy that draws keeps of its own weights after an iteration, at most; the rest is the trained
    ones'. 0: the trained policy draws."""
    old_share_growth: PositiveFloat = 0.001
    """How much that share grows with each optimizer step, from 0."""
    old_share_start: NonNegativeInt = 0
    """Optimizer steps before it grows."""


def weigh(settings: NftSettings, advantages: Tensor) -> Tensor:
    """Return how good each image is, from 0 to 1; ½ is as usual."""
    return (0.5 + advantages / (2 * settings.advantage_range)).clamp(0, 1)


def share_of_old(settings: NftSettings, steps: int) -> float:
    """Return the old policy's share of itself after so many optimizer steps, as in the published code."""
    return min(max(0, steps - settings.old_share_start) * settings.old_share_growth, settings.old_share)


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the loss of a minibatch's images, each noised at several times.

    Multiplied by the range of the advantages, as in the published code.
    """
    from rlcm_cli.core.denoising_losses import nft_loss
    from rlcm_cli.core.objectives import ObjectiveResult

    settings: NftSettings = learner.settings

    def loss(denoised: _denoising.Denoised) -> ObjectiveResult:
        images = denoised.images
        old = _denoising.predict_old(learner, images)
        found = nft_loss(
            denoised.new, old, images.target_NCHW, images.levels_N, denoised.weights_N, beta=settings.beta
        )
        return ObjectiveResult(settings.advantage_range * found.loss, found.metrics)

    return _denoising.accumulate_samples(learner, minibatch, settings.times, loss)


def count_forwards(config: Config, actions: int) -> int:
    """Count the forwards of a sample, those of the old policy among them."""
    return _denoising.count_forwards(config, others=1)


OBJECTIVE = Objective(
    settings=NftSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=(_denoising.LOSS, _denoising.DISTANCE),
    needs=frozenset({Need.FINAL_LATENTS, Need.OLD_POLICY}),
    # Its own range clips them.
    advantages=AdvantageRules(admitted=("per-prompt", "batch", "group"), clipped=False),
    check=_denoising.check,
    weigh=weigh,
    old_share=share_of_old,
)
