"""Means over prompts with their standard errors, of plain values: a comparison of runs needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, each the mean of its images; `error` is its standard error, NaN for a single prompt."""

    mean: float
    error: float
    prompts: int


def estimate(values: Sequence[float], prompts: Sequence[str]) -> Estimate | None:
    """Average the values of images over prompts; None if there is no value.

    Images of one prompt are not independent, so the error is that of the prompts' means.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        if not math.isnan(value):
            by_prompt.setdefault(prompt, []).append(value)
    if not by_prompt:
        return None
    means = [sum(each) / len(each) for each in by_prompt.values()]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return Estimate(statistics.fmean(means), error, len(means))
