"""Advantages: how much better a sample's reward is than its prompt's usual one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

PromptStatistics = Mapping[str, tuple[float, ...]]
"""Prompt → its newest rewards, oldest first."""

EPSILON = 1e-6


def per_prompt_advantages(
    prompts: Sequence[str],
    rewards: Sequence[float],
    statistics: PromptStatistics,
    *,
    buffer_size: int,
    min_count: int,
) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
    """Normalise rewards by the running mean and standard deviation of their prompt.

    DDPO (arXiv 2305.13301), section 4, and RLCM: the newest `buffer_size` rewards of each prompt are kept;
    a prompt with fewer than `min_count` takes the mean and deviation of the whole batch. Gives the
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
        advantages[of_prompt] = (values[of_prompt] - reference.mean()) / (reference.std() + EPSILON)
    return advantages, updated


def combine_advantages(advantages: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Add the advantages of several rewards, float64 [B] each, by their weights: Σ wᵢ·Aᵢ / √(Σ wᵢ²).

    Each reward was normalised by itself, so that its weight alone, not its unit or spread, says how much it
    counts (the decoupled normalisation of GDPO, arXiv 2601.05242, section 3). The divisor keeps the variance of
    independent rewards at 1, and a single reward as it is.
    """
    norm = math.sqrt(sum(weights[name] ** 2 for name in advantages))
    combined: np.ndarray = np.sum([weights[name] / norm * values for name, values in advantages.items()], axis=0)
    return combined
