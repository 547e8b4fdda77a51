"""The samples of each optimizer step, and the actions of each that it trains on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.noise import derive_seed, seed_generator
from rlcm_cli.learning.rollout import Rollout


@dataclass(frozen=True)
class Minibatch:
    """The samples of an optimizer step, and which of their actions are trained on."""

    samples_M: Tensor
    """int64 [M], rows of the rollout."""
    steps_MK: Tensor
    """int64 [M, K], indices of actions."""
    epoch: int = 0
    """The inner epoch, from 0: what an objective draws at random for a sample belongs to both."""


def draw_minibatches(rollout: Rollout, config: Config, iteration: int) -> Iterator[Minibatch]:
    """Return the samples of each optimizer step: each inner epoch in a new random order, groups together.

    Actions that the gradient of the reward goes back through are not among those that are trained on.
    """
    settings, count = config.train, len(rollout.trajectories)
    actions = rollout.trajectories.actions - config.last_step.own_actions
    chosen = settings.trained_actions(actions)
    candidates = torch.tensor(settings.chosen_actions(actions), dtype=torch.int64)
    size = settings.minibatch_size or count
    for epoch in range(settings.inner_epochs):
        generator = seed_generator(derive_seed(config.seed, "minibatches", iteration, epoch))
        members = torch.arange(count).view(-1, rollout.manifest.group_size)
        order = members[torch.randperm(len(members), generator=generator)].flatten()
        for first in range(0, count, size):
            samples = order[first : first + size]
            steps = candidates.expand(len(samples), -1)
            if chosen < len(candidates):
                shuffled = torch.rand(steps.shape, generator=generator).argsort(1)
                steps = candidates[shuffled[:, :chosen].sort(1).values]
            yield Minibatch(samples, steps, epoch)
