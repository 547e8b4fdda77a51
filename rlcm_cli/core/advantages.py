"""Advantages: how much better a sample's reward is than its prompt's usual one."""

from __future__ import annotations

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
