"""The learning rate of an iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

RateSchedule = Literal["constant", "linear", "cosine"]

DECAYS: Mapping[RateSchedule, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
"""Share of the rate that is left when `progress` (0 … 1) of the decay has passed."""


def learning_rate(
    base: float, iteration: int, *, warmup: int, schedule: RateSchedule, decay_iterations: int, decay_every: int
) -> float:
    """Return the rate of an iteration (from 0): it climbs to `base`, then decays to 0.

    As in the published code of RLCM, the decay takes its step before the iterations that it holds for: the first
    after the warm-up have `base` · (1 − E/D) of a linear decay over D iterations in steps of E, and the last E of the
    D have 0.

    Args:
        base: The highest rate.
        iteration: Of the run, from 0.
        warmup: Iterations W below `base`: iteration i < W has base · (i + 1) / (W + 1), which is never 0.
        schedule: Shape of the decay.
        decay_iterations: Iterations D after the warm-up in which the decay reaches 0; 0: no decay.
        decay_every: Iterations E between two steps of the decay.
    """
    if iteration < warmup:
        return base * (iteration + 1) / (warmup + 1)
    if not decay_iterations:
        return base
    step = ((iteration - warmup) // decay_every + 1) * decay_every
    return base * DECAYS[schedule](min(1.0, step / decay_iterations))
