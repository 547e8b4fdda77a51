"""Comparisons of two at a time: how often one wins, with its interval, and a score for each by Bradley and Terry.

K is the number of things that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

MOST_STEPS = 100
SMALLEST_STEP = 1e-10
"""Of a score, below which the fit has ended; scores are of the order of 1."""


@dataclass(frozen=True)
class WinRate:
    """How often the images of one contender were preferred to those of another, of the same prompts."""

    share: float
    """Mean over prompts, each the mean of its comparisons; a tie is half a win."""
    interval: tuple[float, float]
    """Of 95 %, after Wilson. Comparisons on one prompt are not independent, so it counts prompts."""
    prompts: int
    comparisons: int

    def verdict(self) -> str:
        """Return in words which is preferred."""
        low, high = self.interval
        return "preferred" if low > 0.5 else "not preferred: the other is" if high < 0.5 else "no clear difference"


def average_wins(wins: Mapping[str, Sequence[float]]) -> WinRate | None:
    """Average prompt → what a contender got of each comparison, 1, ½ or 0, over prompts; None: there is none."""
    means = [fmean(shares) for shares in wins.values() if shares]
    if not means:
        return None
    share = fmean(means)
    return WinRate(share, wilson_interval(share, len(means)), len(means), sum(map(len, wins.values())))


def compare_values(values: Sequence[float], against: Sequence[float], prompts: Sequence[str]) -> WinRate | None:
    """Return how often an image has the higher value of two that were drawn from the same prompt and seed.

    Args:
        values: A number an image; NaN where it has none.
        against: Those of the other contender, in the same order.
        prompts: Prompt of each pair.

    Returns:
        None where no pair has two values.
    """
    wins: dict[str, list[float]] = {}
    for prompt, value, other in zip(prompts, values, against, strict=True):
        if not math.isnan(value) and not math.isnan(other):
            wins.setdefault(prompt, []).append(0.5 if value == other else float(value > other))
    return average_wins(wins)


def fit_scores(wins: np.ndarray, prior_std: float = 1.0) -> np.ndarray:
    """Return the most probable scores of the Bradley-Terry model, float64 [K], whose mean is 0.

    i is preferred to j with probability σ(s_i − s_j) (Bradley and Terry 1952, Biometrika 39). A normal prior on each
    score keeps those finite that won, or lost, every comparison. Fitted by Newton's method; the objective is convex.

    Args:
        wins: [K, K], how often i was preferred to j; half a time each for a tie.
        prior_std: Standard deviation of the prior.
    """
    scores = np.zeros(len(wins))
    against = wins + wins.T
    precision = 1 / prior_std**2
    for _ in range(MOST_STEPS):
        chances = 1 / (1 + np.exp(scores[None, :] - scores[:, None]))
        gradient = (against * chances - wins).sum(1) + precision * scores
        weights = against * chances * chances.T
        hessian = np.diag(weights.sum(1) + precision) - weights
        step = np.linalg.solve(hessian, gradient)
        # Where the curvature falls, a whole step may be too long.
        length = 1.0
        loss = _loss(scores, wins, precision)
        while _loss(scores - length * step, wins, precision) > loss and length > SMALLEST_STEP:
            length /= 2
        scores = scores - length * step
        if np.abs(length * step).max(initial=0.0) < SMALLEST_STEP:
            break
    return scores


def _loss(scores: np.ndarray, wins: np.ndarray, precision: float) -> float:
    """Return the negative log-posterior of scores, up to a constant."""
    differences = scores[:, None] - scores[None, :]
    return float((wins * np.logaddexp(0, -differences)).sum() + precision * (scores**2).sum() / 2)


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share of `count` trials (Wilson 1927, JASA 22), within 0 and 1.

    Where trials are not 0 or 1 but in between, such as means of several, it is wider than it need be.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)
