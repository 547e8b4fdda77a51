"""Metrics of an iteration, for tests that write or read some of them."""

from __future__ import annotations

from typing import Any

from rlcm_cli.store.metrics import IterationMetrics


def make_row(iteration: int = 0, **values: Any) -> IterationMetrics:
    """Return metrics of an iteration: what a test states, and what none of them lacks."""
    least = {
        "iteration": iteration,
        "checkpoint": iteration + 1,
        "reward_mean": 0.5 + iteration,
        "reward_std": 0.0,
        "reward_best": 0.5 + iteration,
        "rewards": {},
        "reward_stds": {},
        "monitored": {},
        "tasks": {},
    }
    return IterationMetrics.model_validate({**least, **values})
