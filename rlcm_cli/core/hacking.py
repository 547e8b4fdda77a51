"""Reward hacking: the reward that is trained on rises while one that is only monitored falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Drop:
    """How far a monitored reward is below the best that it was.

    Attributes:
        monitored: Its mean in the best earlier window and now.
        deviations: The drop in standard deviations of the monitored reward over images; below 0 it is above its best.
        starts: First iterations of the two windows.
    """

    monitored: tuple[float, float]
    deviations: float
    starts: tuple[int, int]


def best_iteration(monitored: Sequence[float], window: int) -> int:
    """Return the end of the window of iterations with the highest mean; of fewer iterations the last one."""
    if len(monitored) < window:
        return len(monitored) - 1
    return int(np.argmax(_windowed(monitored, window))) + window - 1


def measure_drop(monitored: Sequence[float], spreads: Sequence[float], *, window: int) -> Drop:
    """Compare the newest window of iterations with the earlier one in which the monitored reward was highest.

    Args:
        monitored: Mean of the monitored reward, one an iteration, of two windows or more.
        spreads: Standard deviation of the monitored reward over an iteration's images.
        window: Iterations that are averaged; the two windows share none.
    """
    means = _windowed(monitored, window)
    best = int(np.argmax(means[:-window]))
    spread = float(np.mean(spreads[best : best + window]))
    drop = float(means[best] - means[-1])
    deviations = drop / spread if spread else math.copysign(math.inf, drop) if drop else 0.0
    return Drop((float(means[best]), float(means[-1])), deviations, (best, len(means) - 1))


def find_fall(
    trained: Sequence[float], monitored: Sequence[float], spreads: Sequence[float], *, window: int, fall: float
) -> Drop | None:
    """Find a fall of the monitored reward, see `measure_drop`, while the trained one rose.

    Args:
        trained: Mean of the trained reward, one an iteration.
        monitored: Mean of the monitored reward.
        spreads: Standard deviation of the monitored reward over an iteration's images.
        window: Iterations that are averaged; the two windows share none.
        fall: Fall that counts, in standard deviations over images.

    Returns:
        What fell; None where nothing fell by more than `fall`, the trained reward did not rise meanwhile, or
        there are fewer than two windows.
    """
    if len(monitored) < 2 * window:
        return None
    found, reached = measure_drop(monitored, spreads, window=window), _windowed(trained, window)
    best, newest = found.starts
    return found if found.deviations > fall and reached[newest] > reached[best] else None


def _windowed(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each window of consecutive values."""
    return np.convolve(values, np.full(window, 1 / window), mode="valid")
