"""`--log-with` of loop and train, and `watch`, on runs that the commands make, here and in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import refuse, succeed, write_settings
from object_stores import download
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlcm_cli.errors import ConfigError
from rlcm_cli.report import trackers


@pytest.fixture
def settings(tiny_lcm, tmp_path):
    return write_settings(tmp_path, tiny_lcm)


def logged(run: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(run / "logs" / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def measured(run: Path, name: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["checkpoint"], float(np.float32(row[name]))) for row in rows]


def test_a_loop_that_goes_on_has_one_log(capsys, settings, tmp_path):
    run = tmp_path / "run"
    first = succeed(capsys, "loop", "--config", settings, "--run", run, "--log-with", "tensorboard", "--json")
    assert first.json_line()["checkpoint"] == 2
    succeed(capsys, "loop", "--run", run, "--iterations", 3, "--log-with", "tensorboard")
    assert logged(run, "reward_mean") == measured(run, "reward_mean")
    assert [step for step, _ in logged(run, "evaluation/training/compressibility")] == [0, 2, 3]


def test_a_log_that_is_begun_late_has_the_whole_run(capsys, settings, tmp_path):
    run = tmp_path / "run"
    succeed(capsys, "loop", "--config", settings, "--run", run, "--iterations", 1)
    assert not (run / "logs").exists()
    for _ in range(2):
        succeed(capsys, "sample", "--run", run, "-q")
        succeed(capsys, "score", "--run", run, "-q")
        succeed(capsys, "train", "--run", run, "-q", "--log-with", "tensorboard")
    assert len(measured(run, "grad_norm")) == 3
    assert logged(run, "grad_norm") == measured(run, "grad_norm")


def test_a_tracker_that_is_missing_is_told_before_anything_is_made(capsys, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    run = tmp_path / "run"
    options = ("loop", "--config", settings, "--run", run)
    refuse(
        capsys, ConfigError, *options, "--log-with", "wandb", saying=("--log-with wandb", "pip install 'rlcm[wandb]'")
    )
    refuse(capsys, ConfigError, *options, "--log-with", "paper", saying=("paper", "tensorboard"))
    assert not run.exists()


def test_a_run_in_an_object_store_is_monitored_and_its_log_continued_elsewhere(
    capsys, settings, s3, remote, machine, tmp_path
):
    succeed(capsys, "loop", "--config", settings, "--run", remote, "--log-with", "tensorboard", "-q")
    stage = machine("two")
    shown = succeed(capsys, "watch", remote, "--once").out
    assert "2 of 2" in shown
    assert "done" in shown
    assert "checkpoints 0, 2" in shown
    assert [*stage.rglob("*.safetensors")] == []
    succeed(capsys, "loop", "--run", remote, "--iterations", 3, "--log-with", "tensorboard", "-q")
    run = download(s3, remote, tmp_path / "downloaded")
    assert logged(run, "reward_mean") == measured(run, "reward_mean")
    assert [step for step, _ in logged(run, "reward_mean")] == [1, 2, 3]
