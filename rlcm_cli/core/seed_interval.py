"""The interval of a mean over a few independent runs, by Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95
WIDEST = 1e8
"""Above every quantile that is asked for here: with one degree of freedom and 99.999 % it is 63,662."""


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Return the interval of the mean of independent values, by Student's t with n − 1 degrees of freedom.

    None for fewer than two values: nothing is known of how much they differ.
    """
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * error
    mean = statistics.fmean(values)
    return mean - half, mean + half


def t_quantile(chance: float, degrees: int) -> float:
    """Return the value that Student's t with so many degrees of freedom stays below with a chance from 0.5 to 1."""
    low, high = 0.0, WIDEST
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if t_chance(middle, degrees) < chance else (low, middle)
    return high


def t_chance(value: float, degrees: int) -> float:
    """Return the chance that Student's t with so many degrees of freedom stays below a value that is 0 or more.

    For whole degrees of freedom it is a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(value, math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2
