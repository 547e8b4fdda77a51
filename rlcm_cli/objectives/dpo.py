"""Diffusion-DPO: of two images of a prompt, the better one denoised better than the worse one (arXiv 2311.12908)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.objectives import Need, Objective, _denoising, _preferences
from rlcm_cli.sections import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from rlcm_cli.config import Config
    from rlcm_cli.core.objectives import ObjectiveResult
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch


class DpoSettings(_preferences.PairSettings):
    """Diffusion-DPO: images noised again; the better one of a pair is denoised better, next to the base model."""

    kind: Literal["dpo"] = "dpo"
    beta: PositiveFloat = 5000.0
    """How strongly the policy is held at the base model. The published 5,000 is of models that predict noise; code for
    flow matching has 100."""
    times: PositiveInt = 1
    """Model calls of the sampler at whose times a pair is noised, drawn for each pair and epoch; at most all there
    are."""


def check(config: Config) -> None:
    """Refuse what is of trajectories, and torn groups."""
    _denoising.check(config)
    _preferences.check(config)


def accumulate(learner: Learner, minibatch: Minibatch) -> UpdateMetrics:
    """Add the gradient of the loss of a minibatch's pairs, both images of which are noised alike."""
    from rlcm_cli.core.preferences import denoising_margins, preference_loss
    from rlcm_cli.learning.learner import UpdateMetrics
    from rlcm_cli.learning.preferences import pick_pairs
    from rlcm_cli.learning.renoising import draw_calls

    settings: DpoSettings = learner.settings
    pairs = pick_pairs(learner, minibatch.samples_M)
    if not len(pairs):
        return UpdateMetrics({metric.name: 0.0 for metric in OBJECTIVE.metrics})
    calls_PT = draw_calls(learner.rollout, minibatch.epoch, pairs.amin(1), settings.times)

    def loss(denoised: _denoising.Denoised) -> ObjectiveResult:
        base = _denoising.predict_base(learner, denoised.images)
        return preference_loss(denoising_margins(denoised.new, base, denoised.images.target_NCHW, settings.beta))

    rows = pairs.repeat(calls_PT.shape[1], 1)
    return _denoising.add_gradient(learner, minibatch.epoch, rows, calls_PT.T.flatten(), loss)


def count_forwards(config: Config, actions: int) -> float:
    """Count the forwards of a sample, those of the base model among them."""
    return _preferences.share_of_samples(config) * _denoising.count_forwards(config, others=1)


OBJECTIVE = Objective(
    settings=DpoSettings,
    accumulate=accumulate,
    forwards=count_forwards,
    metrics=(_denoising.LOSS, _preferences.ACCURACY),
    needs=frozenset({Need.FINAL_LATENTS, Need.PAIRS}),
    advantages=_preferences.ADVANTAGES,
    check=check,
    pairs_file=_preferences.pairs_file,
)
