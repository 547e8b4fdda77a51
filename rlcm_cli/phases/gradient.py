"""The gradient of one optimizer step: stored transitions replayed with the present policy, a micro-batch at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlcm_cli.config import TrainSettings
from rlcm_cli.core.gaussian import gaussian_kl, take_action
from rlcm_cli.core.noise import derive_seed, seed_generator
from rlcm_cli.core.objectives import neighbour_pairs, rebel_loss, rebel_weights
from rlcm_cli.core.schedule import Transition, transition
from rlcm_cli.core.trajectory import Transitions, flatten_transitions
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.trained import TRAINED
from rlcm_cli.phases.loss_scale import LossScale
from rlcm_cli.phases.objectives import Loss, ObjectiveParts
from rlcm_cli.phases.rollout import Rollout
from rlcm_cli.phases.team import Team

LARGEST = "ratio_drift"
"""The metric of which the largest counts, not the mean."""


@dataclass(frozen=True)
class Minibatch:
    """The samples of an optimizer step, and which of their actions are trained on."""

    samples_M: Tensor
    """int64 [M], rows of the rollout."""
    steps_MK: Tensor
    """int64 [M, K], indices of actions."""


@dataclass
class UpdateMetrics:
    """What one optimizer step measured, by name: means over its transitions, and the largest ratio drift."""

    values: dict[str, float] = field(default_factory=dict)

    def add(self, share: float, metrics: Mapping[str, Tensor | float]) -> None:
        """Count the metrics of a share of the step's transitions in."""
        for name, measured in metrics.items():
            value, known = float(measured), self.values.get(name, 0.0)
            if name != LARGEST:
                self.values[name] = known + share * value
            elif not math.isnan(known):  # max() would drop NaN
                self.values[name] = value if math.isnan(value) else max(known, value)


def draw_minibatches(rollout: Rollout, settings: TrainSettings, run_seed: int, iteration: int) -> Iterator[Minibatch]:
    """Give the samples of each optimizer step: every inner epoch in an order of its own, groups together."""
    count, actions = len(rollout.trajectories), rollout.trajectories.actions
    chosen = max(1, round(settings.timestep_fraction * actions))
    size = settings.minibatch_size or count
    for epoch in range(settings.inner_epochs):
        generator = seed_generator(derive_seed(run_seed, "minibatches", iteration, epoch))
        members = torch.arange(count).view(-1, rollout.manifest.group_size)
        order = members[torch.randperm(len(members), generator=generator)].flatten()
        for first in range(0, count, size):
            samples = order[first : first + size]
            steps = torch.arange(actions).expand(len(samples), -1)
            if chosen < actions:
                steps = torch.rand(steps.shape, generator=generator).argsort(1)[:, :chosen].sort(1).values
            yield Minibatch(samples, steps)


def accumulate_gradient(
    model: DiffusionModel,
    rollout: Rollout,
    minibatch: Minibatch,
    weights: Tensor,
    objective: ObjectiveParts,
    settings: TrainSettings,
    *,
    micro_batch_size: int,
    team: Team = Team(),  # noqa: B008
) -> UpdateMetrics:
    """Add the gradient of an optimizer step to the adapter's; of trajectories without actions there is none.

    `weights`: float32, one a sample of the rollout, of `ObjectiveParts.weigh`. The result depends on the
    micro-batch size by rounding alone: each part counts by its number of transitions. Of several processes, each
    adds and measures its part of the transitions, as a share of all of them.
    """
    transitions = flatten_transitions(rollout.trajectories, minibatch.samples_M, minibatch.steps_MK)
    record = UpdateMetrics()
    if not len(transitions):  # a single call has no action: the last step alone is trained
        record.values[LARGEST] = 0.0
        return record
    if not objective.paired:
        return _backward(
            model, rollout, transitions, weights, objective.loss, settings, micro_batch_size, team, record
        )
    pairs = neighbour_pairs(rollout.groups[minibatch.samples_M])
    log_ratios = sum_log_ratios(model, rollout, minibatch, transitions, micro_batch_size, team)
    given = weights[minibatch.samples_M]
    by_sample = torch.zeros_like(weights)
    # `reinforce` averages over the transitions and descends on the negative.
    by_sample[minibatch.samples_M] = -len(transitions) * rebel_weights(log_ratios, given, pairs, settings.rebel_lr)
    _backward(model, rollout, transitions, by_sample, objective.loss, settings, micro_batch_size, team, record)
    result = rebel_loss(log_ratios, given, pairs, settings.rebel_lr)
    # The second pass's loss is none: only its gradient is REBEL's. Its ratios are of single actions, which is what
    # the check before the first update wants.
    record.values["loss"] = result.loss.item() * len(team.part(len(transitions))) / len(transitions)
    return record


@torch.no_grad()
def sum_log_ratios(
    model: DiffusionModel,
    rollout: Rollout,
    minibatch: Minibatch,
    transitions: Transitions,
    micro_batch_size: int,
    team: Team = Team(),  # noqa: B008
) -> Tensor:
    """Give each sample's log-ratio of new to old policy over its whole trajectory, float32 [M]."""
    log_ratios = torch.zeros(len(transitions))
    first = team.part(len(transitions)).start
    for _, part in micro_batches(model, transitions, micro_batch_size, team):
        log_ratios[first : first + len(part)] = replay(model, rollout, part).log_probs_N.cpu() - part.log_probs_N.cpu()
        first += len(part)
    team.sum(log_ratios)
    return log_ratios.view(-1, len(minibatch.samples_M)).sum(0)


@dataclass(frozen=True)
class Replay:
    """What the present policy says of N stored transitions."""

    gaussian: Transition
    log_probs_N: Tensor
    """float32, of the stored actions."""
    conditioning: dict[str, Tensor]


def replay(model: DiffusionModel, rollout: Rollout, part: Transitions) -> Replay:
    """Score stored actions with the model as it is now; `part` lies on the model's device."""
    conditioning = pick_conditioning(model, rollout, part.samples_N)
    gaussian = predict_transition(model, rollout, part.states_NCHW, part.steps_N, conditioning)
    # As in sampling: the mean is rounded to the model's dtype before the density is taken.
    mean = gaussian.mean.to(part.states_NCHW.dtype)
    _, log_probs = take_action(mean, gaussian.std, action=part.actions_NCHW, reduction=rollout.manifest.reduction)
    return Replay(gaussian, log_probs, conditioning)


def pick_conditioning(model: DiffusionModel, rollout: Rollout, samples_N: Tensor) -> dict[str, Tensor]:
    """Give the conditioning of samples, int64 [N], on the model's device: name → [N, …]."""
    picked = rollout.conditioning_index[samples_N.cpu()]
    return {name: table[picked].to(model.device) for name, table in rollout.conditioning.items()}


def predict_transition(
    model: DiffusionModel, rollout: Rollout, states_NCHW: Tensor, steps_N: Tensor, conditioning: dict[str, Tensor]
) -> Transition:
    """Ask the present policy for the Gaussians after N states at model calls 0 … H − 1, on the model's device."""
    timesteps = rollout.schedule.timesteps.to(model.device)[steps_N]
    guidance = rollout.manifest.schedule.guidance_scale
    output = model.predict(states_NCHW, timesteps, conditioning, guidance)
    return transition(rollout.schedule, output, states_NCHW, steps_N)


def _backward(
    model: DiffusionModel,
    rollout: Rollout,
    transitions: Transitions,
    weights: Tensor,
    loss_of: Loss,
    settings: TrainSettings,
    micro_batch_size: int,
    team: Team,
    record: UpdateMetrics,
) -> UpdateMetrics:
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
            with torch.no_grad(), TRAINED[settings.parameters].base_model(model):
                base = predict_transition(model, rollout, part.states_NCHW, part.steps_N, replayed.conditioning)
            kl = gaussian_kl(
                replayed.gaussian.mean, base.mean, replayed.gaussian.std, rollout.manifest.reduction
            ).mean()
            loss = loss + settings.kl_weight * kl
            metrics["kl_to_base"] = kl.detach()
        return share * loss, None, {"loss": loss.detach(), **metrics}

    for share, part in micro_batches(model, transitions, micro_batch_size, team):
        record.add(share, scale.add_gradient(functools.partial(compute, share, part)))
    record.add(1, scale.metrics())
    return record


def micro_batches(
    model: DiffusionModel, transitions: Transitions, size: int, team: Team
) -> Iterator[tuple[float, Transitions]]:
    """Cut this process's transitions into parts on the model's device, each with its share of those of all."""
    own = team.part(len(transitions))
    for first in own[::size]:
        rows = slice(first, min(first + size, own.stop))
        yield (
            (rows.stop - first) / len(transitions),
            Transitions(
                *(
                    tensor[rows].to(model.device)
                    for tensor in (
                        transitions.states_NCHW,
                        transitions.actions_NCHW,
                        transitions.steps_N,
                        transitions.samples_N,
                        transitions.log_probs_N,
                    )
                )
            ),
        )
