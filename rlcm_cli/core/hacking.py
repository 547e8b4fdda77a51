"""Reward hacking: the reward that is trained on rises while one that is only watched falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fall:
    """A watched reward has fallen while the trained one rose.

    Attributes:
        watched: Its mean in the best earlier window and now.
        deviations: The fall in standard deviations of the watched reward over images.
    """

    watched: tuple[float, float]
    deviations: float


def best_iteration(watched: Sequence[float], window: int) -> int:
    """Return the end of the window of iterations with the highest mean; of fewer iterations the last one."""
    if len(watched) < window:
        return len(watched) - 1
    return int(np.argmax(_windowed(watched, window))) + window - 1


def find_fall(
    trained: Sequence[float], watched: Sequence[float], spreads: Sequence[float], *, window: int, fall: float
) -> Fall | None:
    """Compare the newest window of iterations with the earlier one in which the watched reward was highest.

    Args:
        trained: Mean of the trained reward, one an iteration.
        watched: Mean of the watched reward.
        spreads: Standard deviation of the watched reward over an iteration's images.
        window: Iterations that are averaged; the two windows share none.
        fall: Fall that counts, in standard deviations over images.

    Returns:
        What fell; None where nothing fell by more than `fall`, the trained reward did not rise meanwhile, or
        there are fewer than two windows.
    """
    if len(watched) < 2 * window:
        return None
    means, reached = _windowed(watched, window), _windowed(trained, window)
    best = int(np.argmax(means[:-window]))
    spread = float(np.mean(spreads[best : best + window]))
    drop = means[best] - means[-1]
    if drop <= fall * spread or reached[-1] <= reached[best]:
        return None
    return Fall(
        watched=(float(means[best]), float(means[-1])),
        deviations=float(drop / spread) if spread else float("inf"),
    )


def _windowed(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each window of consecutive values."""
    return np.convolve(values, np.full(window, 1 / window), mode="valid")
