"""The band around a mean reward: one standard deviation over images, as far as a reward can have such values."""

from __future__ import annotations

import math
from collections.abc import Mapping

Range = tuple[float, float]
Bounds = Mapping[str, Range]
"""Reward → the least and the largest value that it can have."""
FREE: Range = (-math.inf, math.inf)


def band(mean: float, spread: float, bounds: Range) -> Range:
    """Return the ends of a band, which holds the mean even where that is out of bounds.

    >>> band(-0.25, 0.5, (-math.inf, 0.0))
    (-0.75, 0.0)
    """
    return min(mean, max(mean - spread, bounds[0])), max(mean, min(mean + spread, bounds[1]))
