"""What a run's reward was at first, at best and at last: one definition for every table. Plain numbers.

A level is the mean over W consecutive iterations: the first W, the last W, and the W with the highest mean. W is 5, or
what is asked for, and at most half of a run's iterations, so that the first and the last share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 5


@dataclass(frozen=True)
class Levels:
    """Mean rewards of a run's iterations, each over `window` of them."""

    first: float
    best: float
    final: float
    window: int


def format_level(level: float | None) -> str:
    """Return a level as every table shows it."""
    return "–" if level is None else f"{level:.3f}".replace("-", "−")


def choose_window(iterations: int, window: int = WINDOW) -> int:
    """Return how many iterations a reward is averaged over in a run of so many."""
    return max(1, min(window, iterations // 2))


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Average each value with the `window` − 1 before it; at the start with as many as there are.

    The mean trails, so that no reward is credited to a policy that only later ones have earned.
    """
    parts = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]


def find_levels(rewards: Sequence[float], window: int = WINDOW) -> Levels:
    """Find the levels of a run from the mean reward of each of its iterations, of which there must be one."""
    span = choose_window(len(rewards), window)
    means = smooth(rewards, span)[span - 1 :]
    return Levels(means[0], max(means), means[-1], span)
