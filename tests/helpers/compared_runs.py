"""Run directories with hand-made metrics, for comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from metric_rows import make_row

from rlcm_cli.config import parse_config
from rlcm_cli.store.evaluations import Evaluation, publish_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.run import publish_config


def write_run(
    root: Path,
    means: Sequence[float],
    *,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    samples: int = 10,
    seconds: float = 4.0,
    forwards: int = 100,
    without: Sequence[str] = (),
    monitored: Mapping[str, Sequence[float]] | None = None,
    **sections: Any,
) -> Path:
    """Write a run whose iterations have these mean rewards and cost the same each; `seconds` is the wall time.

    A setting that is None is left out, such as `rewards` where `tasks` have their own.
    """
    layout = RunLayout(root)
    values: dict[str, Any] = {
        "task": "compression",
        "seed": seed,
        "rewards": weights or {"compressibility": 1.0},
        **sections,
    }
    trained = values["rewards"] or dict.fromkeys(
        (name for task in values["tasks"].values() for name in task["rewards"]), 1.0
    )
    values = {key: value for key, value in values.items() if value is not None}
    if monitored:
        values["monitor"] = {"rewards": list(monitored)}
    publish_config(layout, parse_config(values).to_json(), {})
    for number, reward in enumerate(means):
        row = {
            "reward_mean": reward,
            "reward_std": 0.0,
            "reward_best": reward,
            "rewards": dict.fromkeys(trained, reward / sum(trained.values())),
            "reward_stds": dict.fromkeys([*trained, *(monitored or {})], 0.0),
            "monitored": {name: series[number] for name, series in (monitored or {}).items()},
            "samples": samples,
            "sample_seconds": seconds / 2,
            "score_seconds": seconds / 4,
            "train_seconds": seconds / 4,
            "cpu_seconds": 2 * seconds,
            "forwards": forwards,
        }
        publish_metrics(layout, make_row(number, **{key: value for key, value in row.items() if key not in without}))
    return root


def write_evaluation(
    root: Path,
    checkpoint: int,
    rewards: Mapping[str, Sequence[float]],
    held_out: Sequence[bool],
    revisions: Mapping[str, str] | None = None,
    prompts: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> None:
    """Publish an evaluation, without `tasks` of images of one task."""
    count = len(held_out)
    publish_evaluation(
        RunLayout(root),
        Evaluation(
            checkpoint=checkpoint,
            policy_digest="p" * 64,
            images=np.zeros((count, 3, 4, 4), np.uint8),
            prompts=list(prompts or ["cat"] * count),
            tasks=list(tasks or ["compression"] * count),
            seed=np.arange(count),
            held_out=np.array(held_out),
            rewards={name: np.array(values, np.float32) for name, values in rewards.items()},
            revisions=revisions or {},
        ),
    )
