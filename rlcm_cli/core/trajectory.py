"""The record of a sampled image: the states of its decision process and the actions between them.

Shape suffixes: B samples, S states, A actions (S = A + 1), C channels, H height, W width, N transitions;
M chosen samples and K chosen actions of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of B samples that share their timesteps."""

    latents_BSCHW: Tensor
    """Each state once, in the dtype in which the model was fed it; state s + 1 is action s."""
    log_probs_BA: Tensor
    """float32, under the policy that drew them."""
    timesteps_A2: Tensor
    """(timestep, next timestep) of each action, int64; float64 of a sampler whose times are not whole."""

    def __len__(self) -> int:
        return len(self.latents_BSCHW)

    @property
    def actions(self) -> int:
        """A, the number of actions."""
        return self.log_probs_BA.shape[1]


@dataclass(frozen=True)
class Transitions:
    """N transitions of any samples and steps, side by side in one batch."""

    states_NCHW: Tensor
    actions_NCHW: Tensor
    steps_N: Tensor
    """int64, index of the action in its trajectory."""
    samples_N: Tensor
    """int64, row of the trajectory in the record that it came from."""
    log_probs_N: Tensor
    """float32, under the policy that drew them."""

    def __len__(self) -> int:
        return len(self.steps_N)


def flatten_transitions(trajectories: Trajectories, samples_M: Tensor, steps_MK: Tensor) -> Transitions:
    """Lay K transitions of each of the chosen samples side by side, N = M · K: all first ones, then the second.

    `samples_M`, `steps_MK`: int64, rows of the record and indices of their actions. Where every sample has the same
    steps, neighbours are of one step, so that a micro-batch holds many samples of few steps.
    """
    steps_N = steps_MK.T.flatten()
    samples_N = samples_M.repeat(steps_MK.shape[1])
    return Transitions(
        trajectories.latents_BSCHW[samples_N, steps_N],
        trajectories.latents_BSCHW[samples_N, steps_N + 1],
        steps_N,
        samples_N,
        trajectories.log_probs_BA[samples_N, steps_N],
    )


def join_trajectories(parts: list[Trajectories]) -> Trajectories:
    """Join the trajectories of several shards, which share their timesteps."""
    return Trajectories(
        torch.cat([part.latents_BSCHW for part in parts]),
        torch.cat([part.log_probs_BA for part in parts]),
        parts[0].timesteps_A2,
    )
