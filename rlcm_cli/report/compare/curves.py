"""Reward against what it cost: smoothing, the mean over seeds, and the price of a given reward. Plain numbers.

Policy k is the one that k iterations have trained. Its reward is the mean over the images that iteration k, counted
from 0, draws with it; its price is what all iterations before have cost, so that the base model, k = 0, is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rlcm_cli.report.run.levels import choose_window, smooth


@dataclass(frozen=True)
class Curve:
    """A run of N iterations, or the mean over several."""

    rewards: tuple[float, ...]
    """N smoothed rewards, of the policies 0 to N − 1."""
    prices: Mapping[str, tuple[float, ...]]
    """Cost (queries, seconds, …) → N + 1 totals, of the policies 0 to N; the last is of the whole training."""
    window: int
    """Iterations that a reward is the mean of; at the start fewer."""


def trace_curve(rewards: Sequence[float], costs: Mapping[str, Sequence[float]], window: int) -> Curve:
    """Make the curve of a run from the reward and the costs of each of its iterations.

    The window is that of the run's levels, which are means of the same iterations.
    """
    prices = {name: tuple(accumulate(values, initial=0.0)) for name, values in costs.items()}
    span = choose_window(len(rewards), window)
    return Curve(tuple(smooth(rewards, span)), prices, span)


def average_curves(curves: Sequence[Curve]) -> Curve:
    """Average rewards and prices over seeds, iteration by iteration, as far as the shortest goes."""
    names = curves[0].prices
    return Curve(
        tuple(_means([curve.rewards for curve in curves])),
        {name: tuple(_means([curve.prices[name] for curve in curves])) for name in names},
        curves[0].window,
    )


def find_crossing(curve: Curve, target: float) -> float | None:
    """Find where a curve first reaches the target, in iterations; None where it never does.

    Between two iterations the reward is a straight line. The start of a curve, where the means are of fewer
    iterations than the window, does not count: a single lucky iteration would reach the target there.
    """
    settled = min(curve.window, len(curve.rewards)) - 1
    for index in range(settled, len(curve.rewards)):
        reward = curve.rewards[index]
        if reward >= target:
            before = curve.rewards[index - 1] if index else reward
            return float(index) if before >= target else index - 1 + (target - before) / (reward - before)
    return None


def price_at(prices: Sequence[float], iteration: float) -> float:
    """Return the price of a policy between two iterations, on a straight line."""
    index = min(int(iteration), len(prices) - 2)
    return prices[index] + (iteration - index) * (prices[index + 1] - prices[index])


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=False)]
