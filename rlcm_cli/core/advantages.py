"""Advantages: how much better a sample's reward is than what is usual for it.

What is usual is a choice, and `ADVANTAGES` holds the functions for it by name. All have the signature of
`AdvantageFunction`, whatever of it they need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

PromptStatistics = Mapping[str, tuple[float, ...]]
"""Prompt → its newest rewards, oldest first."""

EPSILON = 1e-6


@dataclass(frozen=True)
class Deviation:
    """The standard deviation that differences of rewards are divided by."""

    of_batch: bool = False
    """Whether it is that of all rewards of the iteration, not of what a reward is compared with."""
    correction: int | None = None
    """What is subtracted from the number of rewards in its divisor, 0 or 1; None: what the function has."""

    def measure(self, values: np.ndarray, correction: int) -> float:
        """Return the standard deviation of rewards, of a single one 0. `correction`: where none is set."""
        subtracted = correction if self.correction is None else self.correction
        return float(values.std(ddof=min(subtracted, len(values) - 1)))


class AdvantageFunction(Protocol):
    """Rewards of the B samples of an iteration → their advantages, and the statistics for the next iteration."""

    def __call__(
        self,
        prompts: Sequence[str],
        rewards: Sequence[float],
        statistics: PromptStatistics,
        *,
        groups: Sequence[int],
        buffer_size: int,
        min_count: int,
        deviation: Deviation = Deviation(),
    ) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
        """Compare each reward with others.

        Args:
            prompts: Prompt of each sample.
            rewards: One a sample, finite.
            statistics: Rewards of earlier iterations; left as they are.
            groups: Group of each sample: the images of one prompt drawn together.
            buffer_size: Newest rewards of a prompt to keep.
            min_count: Rewards of a prompt below which the batch serves instead.
            deviation: What differences are divided by, of functions that divide them.

        Returns:
            Advantages, float64 [B], and the updated statistics.
        """
        ...


def per_prompt_advantages(
    prompts: Sequence[str],
    rewards: Sequence[float],
    statistics: PromptStatistics,
    *,
    groups: Sequence[int] = (),
    buffer_size: int,
    min_count: int,
    deviation: Deviation = Deviation(),
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Normalise rewards by the running mean and standard deviation of their prompt.

    DDPO (arXiv 2305.13301), section 4, and RLCM: the newest `buffer_size` rewards of each prompt are kept;
    a prompt with fewer than `min_count` takes the mean and deviation of the whole batch. Returns the
    advantages, float64 [B], and the updated statistics; the argument is left as it was.
    """
    values = np.asarray(rewards, dtype=np.float64)
    names = np.asarray(prompts)
    updated = dict(statistics)
    advantages = np.empty_like(values)
    for prompt in np.unique(names):
        of_prompt = names == prompt
        kept = (*updated.get(str(prompt), ()), *values[of_prompt].tolist())[-buffer_size:]
        updated[str(prompt)] = kept
        reference = values if len(kept) < min_count else np.asarray(kept)
        std = deviation.measure(values if deviation.of_batch else reference, 0)
        advantages[of_prompt] = (values[of_prompt] - reference.mean()) / (std + EPSILON)
    return advantages, updated


def batch_advantages(
    prompts: Sequence[str],
    rewards: Sequence[float],
    statistics: PromptStatistics,
    *,
    groups: Sequence[int],
    buffer_size: int,
    min_count: int,
    deviation: Deviation = Deviation(),
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Normalise rewards by the mean and standard deviation of the batch (arXiv 2401.12244), float64 [B].

    An easy prompt's samples then all look good: the difference between prompts is in the advantage too.
    """
    values = np.asarray(rewards, dtype=np.float64)
    return (values - values.mean()) / (deviation.measure(values, 0) + EPSILON), dict(statistics)


def group_advantages(
    prompts: Sequence[str],
    rewards: Sequence[float],
    statistics: PromptStatistics,
    *,
    groups: Sequence[int],
    buffer_size: int,
    min_count: int,
    deviation: Deviation = Deviation(),
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Normalise rewards by the mean and standard deviation of the K samples of their group, float64 [B].

    Group-relative advantages of GRPO (DeepSeekMath, arXiv 2402.03300), section 4.1. GRPO is these advantages with
    `objectives.ppo_clip`; there is no loss of its own. If nothing else is set, the deviation is that of a sample,
    divided by K − 1, as in the code of DanceGRPO and TRL; those of a prompt and of a batch are divided by their
    number, as in DDPO's and RLCM's. The sample of a group of one has the advantage 0.
    """
    centred, index, counts = _centre(rewards, groups)
    if deviation.of_batch:
        return centred / (deviation.measure(np.asarray(rewards, dtype=np.float64), 1) + EPSILON), dict(statistics)
    correction = 1 if deviation.correction is None else deviation.correction
    std = np.sqrt(np.bincount(index, centred**2) / np.maximum(counts - correction, 1))
    return centred / (std[index] + EPSILON), dict(statistics)


def leave_one_out_advantages(
    prompts: Sequence[str],
    rewards: Sequence[float],
    statistics: PromptStatistics,
    *,
    groups: Sequence[int],
    buffer_size: int,
    min_count: int,
    deviation: Deviation = Deviation(),
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Subtract from each reward the mean of the other K − 1 of its group, float64 [B].

    RLOO (arXiv 2402.14740), section 3.2. They keep the reward's unit, as nothing divides them by a deviation: an
    advantage clip is then in kB for a reward in kB, and clips all but the sign where rewards differ by more. Set
    it, and the gradient norm, for the spread of the reward. The sample of a group of one has the advantage 0.
    """
    centred, index, counts = _centre(rewards, groups)
    # r − mean of the others = K / (K − 1) · (r − mean of all).
    return centred * (counts / np.maximum(counts - 1, 1))[index], dict(statistics)


def plain_rewards(
    prompts: Sequence[str],
    rewards: Sequence[float],
    statistics: PromptStatistics,
    *,
    groups: Sequence[int],
    buffer_size: int,
    min_count: int,
    deviation: Deviation = Deviation(),
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Return the rewards as they are, float64 [B].

    For objectives that only compare samples: the softmax of RWR (`objectives.rwr_weights`) in the unit of the reward,
    as in the published code, and REBEL's differences within a pair.
    """
    return np.asarray(rewards, dtype=np.float64), dict(statistics)


ADVANTAGES: Mapping[str, AdvantageFunction] = {
    "per-prompt": per_prompt_advantages,
    "batch": batch_advantages,
    "group": group_advantages,
    "leave-one-out": leave_one_out_advantages,
    "none": plain_rewards,
}


def combine_advantages(advantages: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Add the advantages of several rewards, float64 [B] each, by their weights: Σ wᵢ·Aᵢ / √(Σ wᵢ²).

    Each reward was normalised by itself, so that only its weight, not its unit or spread, says how much it
    counts (the decoupled normalisation of GDPO, arXiv 2601.05242, section 3); leave-one-out advantages are not
    normalised, and their units count too. The divisor keeps the variance of independent rewards at 1, and a single
    reward as it is.
    """
    norm = math.sqrt(sum(weights[name] ** 2 for name in advantages))
    combined: np.ndarray = np.sum([weights[name] / norm * values for name, values in advantages.items()], axis=0)
    return combined


def _centre(rewards: Sequence[float], groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rewards less their group's mean [B], each sample's group [B], and the sizes of the groups."""
    values = np.asarray(rewards, dtype=np.float64)
    _, index, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return values - (np.bincount(index, values) / counts)[index], index, counts
