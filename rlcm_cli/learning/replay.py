"""Stored transitions replayed with the present policy, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.core.gaussian import take_action
from rlcm_cli.core.schedule import Transition, transition
from rlcm_cli.core.trajectory import Transitions
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.processes.job import Processes


@dataclass(frozen=True)
class Replay:
    """What the present policy says of N stored transitions."""

    gaussian: Transition
    log_probs_N: Tensor
    """float32, of the stored actions."""
    conditioning: dict[str, Tensor]
    output_NCHW: Tensor
    """Of the model, as it predicts."""


def replay(model: LatentModel, rollout: Rollout, part: Transitions) -> Replay:
    """Score stored actions with the model as it is now; `part` lies on the model's device."""
    conditioning = pick_conditioning(model, rollout, part.samples_N)
    output = predict_output(model, rollout, part.states_NCHW, part.calls_N, conditioning)
    gaussian = transition(rollout.schedule, output, part.states_NCHW, part.calls_N)
    # As in sampling: the mean is rounded to the model's dtype before the density is taken.
    mean = gaussian.mean.to(part.states_NCHW.dtype)
    _, log_probs = take_action(mean, gaussian.std, action=part.actions_NCHW, reduction=rollout.manifest.reduction)
    return Replay(gaussian, log_probs, conditioning, output)


@torch.no_grad()
def replay_log_probs(
    model: LatentModel,
    rollout: Rollout,
    transitions: Transitions,
    micro_batch_size: int,
    processes: Processes = Processes(),
) -> Tensor:
    """Return the log-probabilities of stored actions under the model as it is now, float32 [N] on the CPU.

    Of several processes, each replays a part, and all get the same.
    """
    log_probs_N = torch.zeros(len(transitions))
    first = processes.part(len(transitions)).start
    for _, part in micro_batches(model, transitions, micro_batch_size, processes):
        log_probs_N[first : first + len(part)] = replay(model, rollout, part).log_probs_N.cpu()
        first += len(part)
    processes.sum(log_probs_N)
    return log_probs_N


def pick_conditioning(model: LatentModel, rollout: Rollout, samples_N: Tensor) -> dict[str, Tensor]:
    """Return the conditioning of samples, int64 [N], on the model's device: name → [N, …]."""
    picked = rollout.conditioning_index[samples_N.cpu()]
    return {name: table[picked].to(model.device) for name, table in rollout.conditioning.items()}


def predict_transition(
    model: LatentModel, rollout: Rollout, states_NCHW: Tensor, calls_N: Tensor, conditioning: dict[str, Tensor]
) -> Transition:
    """Ask the present policy for the Gaussians after N states at model calls 0 … H − 1, on the model's device."""
    output = predict_output(model, rollout, states_NCHW, calls_N, conditioning)
    return transition(rollout.schedule, output, states_NCHW, calls_N)


def predict_output(
    model: LatentModel, rollout: Rollout, states_NCHW: Tensor, calls_N: Tensor, conditioning: dict[str, Tensor]
) -> Tensor:
    """Return what the present policy predicts at N states of model calls 0 … H − 1, on the model's device."""
    timesteps = rollout.schedule.timesteps.to(model.device)[calls_N]
    return model.predict(states_NCHW, timesteps, conditioning, rollout.manifest.schedule.guidance_scale)


def micro_batches(
    model: LatentModel, transitions: Transitions, size: int, processes: Processes
) -> Iterator[tuple[float, Transitions]]:
    """Cut this process's transitions into parts on the model's device, each with its share of those of all."""
    own = processes.part(len(transitions))
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
                        transitions.calls_N,
                        transitions.samples_N,
                        transitions.log_probs_N,
                    )
                )
            ),
        )
