"""What the embedded model learns from the embedded judge: minutes each, so in the slow tier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rlcm_cli.config import resolve_config
from rlcm_cli.events import Event, HackingFound
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.runs.policy import start_run
from rlcm_cli.runs.run import Run
from rlcm_cli.store.evaluations import read_evaluation

pytestmark = pytest.mark.slow


def run_loop(root: Path, task: str, *assignments: str) -> tuple[Run, list[Event]]:
    run, model = start_run(root, resolve_config([task], assignments=["seed=1", *assignments]))
    return run, list(loop(run, model, load_scorers(run)))


def risen_by(run: Run, weights: Mapping[str, float]) -> float:
    """Mean rise of rewards over the fixed images, in standard errors of the mean difference of pairs.

    Each reward counts by its weight, in standard deviations over the images before, as it does in training.
    """
    first, last = (read_evaluation(run.layout, run.layout.evaluations()[index]).rewards for index in (0, -1))
    parts = [
        weight * (last[name] - first[name]).astype(float) / first[name].std(ddof=1) for name, weight in weights.items()
    ]
    difference = np.sum(parts, axis=0)
    return difference.mean().item() / (difference.std(ddof=1).item() / math.sqrt(len(difference)))


def test_alignment_raises_the_scores_of_its_judges(tmp_path):
    run, _ = run_loop(tmp_path / "run", "prompt_image_alignment")
    assert risen_by(run, run.config.rewards) > 2


def test_plain_incompression_raises_the_alarm_of_the_embedded_judge_and_stops(tmp_path):
    run, events = run_loop(
        tmp_path / "run",
        "incompression",
        "rewards={incompressibility=1}",
        'monitor.rewards=["emoji_clip"]',
        "monitor.window=5",
        "monitor.on_hacking=stop",
        "sample.samples=64",
        "train.minibatch_size=64",
        "runtime.iterations=60",
    )
    (alarm,) = [event for event in events if isinstance(event, HackingFound)]
    assert alarm.stops
    assert run.layout.checkpoints()[-1] == alarm.checkpoint < 60
    assert risen_by(run, {"incompressibility": 1.0}) > 2
