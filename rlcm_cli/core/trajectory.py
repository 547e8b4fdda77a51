"""The record of a sampled image: the states of its decision process and the actions between them.

What is recorded are the latents that some action was drawn at, those that are an action, and those of the last call,
which may be trained by itself: each once, as the model was fed it, in the order of the calls. Where all calls draw, or
all but the last, these are all states, S = A + 1. Where others do not draw either, S is up to 2 A + 1.

Shape suffixes: B samples, S states, A actions, C channels, H height, W width, N transitions;
M chosen samples and K chosen actions of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of B samples that share their timesteps."""

    latents_BSCHW: Tensor
    """Each state once, in the dtype in which the model was fed it."""
    log_probs_BA: Tensor
    """float32, under the policy that drew them."""
    timesteps_A2: Tensor
    """(timestep, next timestep) of each action, int64; float64 of a sampler whose times are not whole."""
    calls_A: Tensor
    """int64, the model call of each action, rising."""

    def __len__(self) -> int:
        return len(self.latents_BSCHW)

    @property
    def actions(self) -> int:
        """A, the number of actions."""
        return self.log_probs_BA.shape[1]

    @property
    def positions(self) -> Tensor:
        """int64 [A], index of the state that each action was drawn at; the action itself comes after it."""
        # Of two calls that follow one another, the action of one is the state of the other.
        return self.calls_A.diff(prepend=self.calls_A[:1] - 1).clamp(max=2).cumsum(0) - 1


@dataclass(frozen=True)
class Transitions:
    """N transitions of any samples and steps, side by side in one batch."""

    states_NCHW: Tensor
    actions_NCHW: Tensor
    calls_N: Tensor
    """int64, the model call of the action."""
    samples_N: Tensor
    """int64, row of the trajectory in the record that it came from."""
    log_probs_N: Tensor
    """float32, under the policy that drew them."""

    def __len__(self) -> int:
        return len(self.calls_N)


def flatten_transitions(trajectories: Trajectories, samples_M: Tensor, steps_MK: Tensor) -> Transitions:
    """Lay K transitions of each of the chosen samples side by side, N = M · K: all first ones, then the second.

    `samples_M`, `steps_MK`: int64, rows of the record and indices of their actions. Where every sample has the same
    steps, neighbours are of one step, so that a micro-batch holds many samples of few steps.
    """
    steps_N = steps_MK.T.flatten()
    samples_N = samples_M.repeat(steps_MK.shape[1])
    states_N = trajectories.positions[steps_N]
    return Transitions(
        trajectories.latents_BSCHW[samples_N, states_N],
        trajectories.latents_BSCHW[samples_N, states_N + 1],
        trajectories.calls_A[steps_N],
        samples_N,
        trajectories.log_probs_BA[samples_N, steps_N],
    )


def join_trajectories(parts: list[Trajectories]) -> Trajectories:
    """Join the trajectories of several shards, which share their timesteps."""
    import torch  # here: who reads what a run holds does not wait for it

    return Trajectories(
        torch.cat([part.latents_BSCHW for part in parts]),
        torch.cat([part.log_probs_BA for part in parts]),
        parts[0].timesteps_A2,
        parts[0].calls_A,
    )
