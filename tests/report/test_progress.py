"""How far a run is, read from its files alone at each point of an iteration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from metric_rows import make_row
from reported_runs import MONITORED, REWARD, SAMPLES, make_metrics, write_evaluation, write_reported

from rlcm_cli.config import parse_config
from rlcm_cli.report.run.progress import PhaseProgress, RunProgress, read_progress, seconds_an_iteration, seconds_left
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.run import read_config

ITERATIONS = 4


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run of four iterations that are done and evaluated, with a rollout of each."""
    found = write_reported(tmp_path / "run", runtime={"iterations": ITERATIONS})
    for number in range(ITERATIONS + 1):
        found.checkpoint(number).mkdir(parents=True)
    return found


def read(layout: RunLayout, before: RunProgress | None = None, **changed: Any) -> RunProgress:
    return read_progress(layout, parse_config({**read_config(layout), **changed}), "a run", before)


def go_back(layout: RunLayout, done: int) -> Path:
    """Leave a run with some iterations done, and its next rollout sampled and scored; give that folder."""
    for number in range(done + 1, ITERATIONS + 1):
        layout.checkpoint(number).rmdir()
        layout.metrics(number).unlink()
    shutil.rmtree(layout.root / "evaluations")
    write_evaluation(layout, 0)
    return layout.rollout(done)


def test_a_run_that_is_done(layout):
    progress = read(layout)
    assert (progress.done, progress.planned, progress.finished, progress.phase) == (4, 4, True, None)
    assert progress.rewards == (REWARD,)
    assert progress.monitored == (MONITORED,)
    assert progress.evaluated == (0, 2, 4)
    assert progress.series(lambda row: row.reward_mean) == [make_metrics(number).reward_mean for number in range(4)]
    assert progress.series(lambda row: row.monitored.get(MONITORED)) == [-1, -2, -3, -4]
    assert progress.warnings == ()


def test_each_point_of_an_iteration(layout):
    folder = go_back(layout, 2)
    shard = layout.shard(2, 0, 1)
    phases = [read(layout).phase]
    for reward in (MONITORED, REWARD):
        receipt_path(layout.reward_shard(2, RewardSpec(reward).directory, 0, 1)).unlink()
        phases.append(read(layout).phase)
    receipt_path(shard).unlink()
    phases.append(read(layout).phase)
    shutil.rmtree(folder)
    phases.append(read(layout).phase)
    assert phases == [
        PhaseProgress("train"),
        PhaseProgress("score", 1, 2, "shards of rewards"),
        PhaseProgress("score", 0, 2, "shards of rewards"),
        PhaseProgress("sample", 0, SAMPLES, "images"),
        PhaseProgress("sample"),
    ]
    assert not read(layout).finished


def test_a_run_that_has_only_begun(layout):
    shutil.rmtree(layout.root / "rollouts")
    go_back(layout, 0)
    shutil.rmtree(layout.root / "evaluations")
    assert read(layout).phase == PhaseProgress("evaluate")
    shutil.rmtree(layout.root / "checkpoints")
    progress = read(layout)
    assert (progress.phase, progress.rows, progress.finished) == (PhaseProgress("start"), (), False)


def test_the_last_evaluation_belongs_to_the_run(layout):
    shutil.rmtree(layout.evaluation(4).parent)
    assert read(layout).phase == PhaseProgress("evaluate")
    assert not read(layout).finished


def test_a_run_that_was_extended_goes_on(layout):
    publish_metrics(layout, make_metrics(4))
    layout.checkpoint(5).mkdir()
    progress = read(layout)
    assert (progress.done, progress.planned, progress.finished) == (5, 5, False)
    write_evaluation(layout, 5)
    assert read(layout).finished


def test_metrics_of_an_iteration_that_is_not_done_are_not_shown(layout):
    publish_metrics(layout, make_metrics(4))
    assert read(layout).done == 4


def test_a_later_reading_reads_what_is_new_alone(layout):
    before = read(layout)
    publish_metrics(layout, make_metrics(4))
    layout.checkpoint(5).mkdir()
    for number in range(1, 5):
        layout.metrics(number).unlink()
    assert [row.checkpoint for row in read(layout, before).rows] == [1, 2, 3, 4, 5]


def test_files_that_are_seen_late_are_no_error(layout):
    layout.metrics(3).unlink()
    assert read(layout).done == 2


def test_what_was_moved_away_is_a_warning(layout):
    damaged = layout.quarantine / "rollouts/000001/manifest.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")
    assert read(layout).warnings == ("1 file in quarantine/, moved away as damaged",)


def test_the_time_of_an_iteration_is_the_usual_interval_between_two():
    rows = [make_row(0, finished_at=when, sample_seconds=1.0, train_seconds=2.0) for when in (0, 10, 20, 5000, 5011)]
    assert seconds_an_iteration(rows) == 10
    assert seconds_an_iteration(rows[:2]) == 3.0
    assert seconds_an_iteration([]) is None
    assert seconds_an_iteration([make_row(0)]) is None


def test_the_time_that_is_left_counts_down_within_an_iteration(layout):
    rows = tuple(make_row(number, finished_at=100.0 * number) for number in range(1, 4))
    progress = RunProgress("a run", 5, (), rows=rows)
    assert [seconds_left(progress, now) for now in (200.0, 300.0, 340.0, 900.0)] == [200.0, 200.0, 160.0, 100.0]
    assert seconds_left(RunProgress("a run", 3, (), rows=rows), 300.0) is None


def test_reading_a_run_imports_no_torch(layout):
    import subprocess
    import sys

    script = (
        "import sys, pathlib\n"
        "from rlcm_cli.report.run.progress import read_progress\n"
        "from rlcm_cli.store.layout import RunLayout\n"
        "from rlcm_cli.store.run import read_config\n"
        "import rlcm_cli.runs.hacking, rlcm_cli.config, rlcm_cli.cli.live\n"
        "layout = RunLayout(pathlib.Path(sys.argv[1]))\n"
        "assert read_progress(layout, rlcm_cli.config.parse_config(read_config(layout)), 'a run').done == 4\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(layout.root)], check=True)


def test_a_joint_run_has_the_rewards_of_all_its_tasks(layout):
    tasks = {"one": {"rewards": {REWARD: 1.0}}, "two": {"rewards": {"sharpness": 1.0, REWARD: 2.0}}}
    progress = read(layout, tasks=tasks, rewards={})
    assert progress.tasks == ("one", "two")
    assert progress.rewards == (REWARD, "sharpness")


def test_no_tensor_is_read(layout):
    for file in layout.root.rglob("*.safetensors"):
        file.write_bytes(b"")
    assert read(layout).done == json.loads(layout.metrics(4).read_text())["checkpoint"]
