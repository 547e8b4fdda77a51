"""From the rewards of a rollout to what each sample teaches: over tasks, and over the rewards of a task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.advantages import ADVANTAGES, Deviation, PromptStatistics, combine_advantages

CORRECTIONS = {"K": 0, "K-1": 1}
"""`train.deviation_divisor` → what is subtracted from the number of rewards."""


class ScoredSamples(Protocol):
    """B samples with their prompts, tasks and rewards, as a rollout has them."""

    @property
    def prompts(self) -> Sequence[str]:
        """Prompt of each sample."""
        ...

    @property
    def tasks(self) -> Sequence[str]:
        """Task of each sample."""
        ...

    @property
    def groups(self) -> Tensor:
        """int64 [B], group of each sample."""
        ...

    @property
    def components(self) -> Mapping[str, Tensor]:
        """Reward name → float32 [B]; NaN where the sample's task does not have it."""
        ...

    @property
    def rewards(self) -> Tensor:
        """The training reward, float32 [B]."""
        ...


def compute_advantages(
    samples: ScoredSamples, config: Config, statistics: Mapping[str, PromptStatistics]
) -> tuple[np.ndarray, dict[str, PromptStatistics]]:
    """Return the advantages, float64 [B], and the updated statistics.

    Each task stands for itself. Its rewards are normalised by themselves and then combined, or summed first,
    as its `combine` says; what is normalised is a component, and its statistics are kept under TASK/REWARD
    or TASK.
    """
    settings = config.train
    divisor = settings.deviation_divisor
    deviation = Deviation(settings.deviation == "batch", None if divisor is None else CORRECTIONS[divisor])
    advantages = np.zeros(len(samples.prompts))
    updated = dict(statistics)
    for task, choice in config.joint_tasks().items():
        rows = rows_of(samples.tasks, task)
        if choice.combine == "sum":
            parts, weights = {task: samples.rewards[rows]}, {task: 1.0}
        else:
            parts = {f"{task}/{name}": samples.components[name][rows] for name in choice.rewards}
            weights = {f"{task}/{name}": weight for name, weight in choice.rewards.items()}
        prompts = [samples.prompts[row] for row in rows]
        normalised = {}
        for component, values in parts.items():
            normalised[component], updated[component] = ADVANTAGES[config.advantage_kind](
                prompts,
                values.tolist(),
                statistics.get(component, {}),
                groups=samples.groups[rows].tolist(),
                buffer_size=settings.buffer_size,
                min_count=settings.min_count,
                deviation=deviation,
            )
        advantages[rows] = combine_advantages(normalised, weights)
    return advantages, updated


def forget_rewards(
    statistics: Mapping[str, PromptStatistics], config: Config, changed: Collection[str]
) -> dict[str, PromptStatistics]:
    """Leave out the statistics that rest on rewards whose code, weights or server has changed."""
    stale = {
        component
        for task, choice in config.joint_tasks().items()
        for name in choice.rewards
        if name in changed
        for component in (task, f"{task}/{name}")
    }
    return {component: values for component, values in statistics.items() if component not in stale}


def sum_rewards(config: Config, tasks: Sequence[str], components: Mapping[str, Tensor]) -> Tensor:
    """Return each sample the weighted sum of the rewards that its task is trained for, float32 [B]."""
    total = torch.full((len(tasks),), torch.nan)
    for task, choice in config.joint_tasks().items():
        rows = rows_of(tasks, task)
        total[rows] = torch.stack([weight * components[name][rows] for name, weight in choice.rewards.items()]).sum(0)
    return total


def rows_of(tasks: Sequence[str], task: str) -> list[int]:
    """Rows of the samples of a task."""
    return [row for row, of_sample in enumerate(tasks) if of_sample == task]


def flat_prompts(samples: ScoredSamples, config: Config) -> list[str]:
    """List the prompts with several images of a task none of whose rewards differ."""
    flat = []
    for task, choice in config.joint_tasks().items():
        by_prompt: dict[str, list[tuple[float, ...]]] = {}
        for row in rows_of(samples.tasks, task):
            values = tuple(float(samples.components[name][row]) for name in choice.rewards)
            by_prompt.setdefault(samples.prompts[row], []).append(values)
        flat += [prompt for prompt, values in by_prompt.items() if len(values) > 1 and len(set(values)) == 1]
    return flat


@dataclass(frozen=True)
class RewardMetrics:
    """What the rewards of an iteration's samples came to, by the names of `IterationMetrics`."""

    reward_mean: float
    """Of the training reward."""
    reward_std: float
    reward_best: float
    rewards: dict[str, float]
    """Mean of each reward that is trained on."""
    reward_stds: dict[str, float]
    """Standard deviation over samples of every reward."""
    monitored: dict[str, float]
    """Mean of each reward that is only monitored."""
    tasks: dict[str, float]
    """Mean of the training reward of each task."""


def measure_rewards(samples: ScoredSamples, config: Config) -> RewardMetrics:
    """Return mean, spread and best of the training reward, and mean and spread of each reward behind it."""
    total = samples.rewards.double()
    trained = {name for task in config.joint_tasks().values() for name in task.rewards}
    known = {name: values[~values.isnan()].double() for name, values in samples.components.items()}
    return RewardMetrics(
        reward_mean=total.mean().item(),
        reward_std=total.std(correction=0).item(),
        reward_best=total.max().item(),
        rewards={name: values.mean().item() for name, values in known.items() if name in trained},
        reward_stds={name: values.std(correction=0).item() for name, values in known.items()},
        monitored={name: known[name].mean().item() for name in config.monitor.rewards},
        tasks={task: total[rows_of(samples.tasks, task)].mean().item() for task in config.joint_tasks()},
    )
