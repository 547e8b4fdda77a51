"""Small runs written by the store alone, whose configuration is whole: phases and stages can open them."""

from __future__ import annotations

from typing import Any

import pytest
import store_samples
from metric_rows import make_row

from rlcm_cli.config.settings import Config
from rlcm_cli.config.validation import parse_config
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import IterationMetrics

REWARD = "compressibility"


def make_rising_row(iteration: int, **values: Any) -> IterationMetrics:
    """Return metrics with what a loop reads of them: a reward that rises."""
    rising = {"rewards": {REWARD: float(iteration)}, "reward_stds": {REWARD: 1.0}, "reward_mean": float(iteration)}
    return make_row(iteration, **{**rising, **values})


def publish_trainable_run(
    monkeypatch: pytest.MonkeyPatch, layout: RunLayout, iterations: int, **sections: Any
) -> Config:
    """Publish a run of some trained iterations; what `store_samples` writes from now on in the test is of its kind."""
    values = {"task": "compression", "seed": 5, "model": {"name": "tiny"}, "rewards": {REWARD: 1.0}, **sections}
    config = parse_config(values)
    monkeypatch.setattr(store_samples, "CONFIG", config.model_dump(mode="json"))
    monkeypatch.setattr(store_samples, "REWARD", RewardSpec(REWARD, {}).directory)
    monkeypatch.setattr(store_samples, "make_row", make_rising_row)
    store_samples.publish_whole_run(layout, iterations)
    return config
