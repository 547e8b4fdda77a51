"""From comparisons of two at a time to a score for each: the model of Bradley and Terry, and the interval of a share.

K is the number of things that are compared.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

MOST_STEPS = 100
SMALLEST_STEP = 1e-10
"""Of a score, below which the fit has ended; scores are of the order of 1."""


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
