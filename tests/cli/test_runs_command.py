"""`rlcm runs`: the runs in a folder, by their files."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import refuse, succeed
from reported_runs import make_metrics, write_evaluation, write_reported, write_rollout

from rlcm_cli.cli.completion import complete_run
from rlcm_cli.cli.runs import to_cells
from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.run.listing import find_runs, read_listed
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.timings import note_planned

HEADER = ["run", "task", "state", "iterations", "reward", "disk", "changed"]


def write_run(root: Path, done: int = 4, iterations: int = 6, **sections: object) -> RunLayout:
    """A run of some iterations of which some are done, with the evaluation of its first checkpoint."""
    runtime = {"iterations": iterations}
    layout = write_reported(root, iterations=done, checkpoints=(0,), rollouts=1, runtime=runtime, **sections)
    for number in range(done + 1):
        layout.checkpoint(number).mkdir(parents=True)
    return layout


def age(layout: RunLayout, seconds: float) -> None:
    """Make every file of a run that much older."""
    for place in [layout.root, *layout.root.rglob("*")]:
        os.utime(place, (time.time() - seconds,) * 2)


def listed(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, dict[str, object]]:
    """What `--json` says of each run, by its folder's name."""
    found = succeed(capsys, "runs", folder, "--json").json_line()
    assert found["folder"] == str(folder)
    assert found["bytes"] == sum(run["bytes"] for run in found["runs"])
    return {Path(run["run"]).name: run for run in found["runs"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run in each state, in the order in which they changed, and things that are not runs."""
    root = tmp_path / "runs"
    age(write_run(root / "going"), 30)
    done = write_run(root / "done", done=6)
    write_evaluation(done, 6)
    age(done, 300)
    age(write_run(root / "by-hand", done=6), 400)
    age(write_run(root / "sweep" / "still"), 3 * 86_400)
    (root / "broken" / "checkpoints").mkdir(parents=True)
    (root / "broken" / "config.json").write_text("{")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    (root / "notes.txt").write_text("nothing")
    return root


def test_each_run_has_a_row_the_newest_first(capsys, folder):
    lines = succeed(capsys, "runs", folder).out.splitlines()
    assert lines[0].split() == HEADER
    rows = [line.split() for line in lines[1:6]]
    assert [row[0] for row in rows] == [
        f"{folder}/{name}" for name in ("going", "done", "by-hand", "sweep/still", "broken")
    ]
    assert [row[2] for row in rows] == ["running", "done", "done", "stopped", "damaged"]
    first, last = make_metrics(0).reward_mean, make_metrics(3).reward_mean
    assert f"compression  running  4 of 6      {first:.3f} → {last:.3f}" in lines[1]
    assert re.search(r" 3\d s ago\b", lines[1])
    assert " 3 days ago" in lines[4]
    assert lines[6].startswith("5 runs, ")
    assert lines[7].startswith(f"damaged: {folder}/broken/config.json: is not JSON")
    assert len(lines) == 8


def test_json_has_the_same_and_the_disk_is_that_of_the_files(capsys, folder):
    found = listed(capsys, folder)
    assert {name: run["state"] for name, run in found.items()} == {
        "going": "running",
        "done": "done",
        "by-hand": "done",
        "still": "stopped",
        "broken": "damaged",
    }
    going = found["going"]
    assert going["bytes"] == sum(file.stat().st_size for file in (folder / "going").rglob("*") if file.is_file())
    assert (going["task"], going["model"], going["seed"]) == ("compression", "emoji-lcm", 5)
    assert (going["iterations"], going["iterations_planned"], going["phase"]) == (4, 6, "sample")
    assert (going["reward_first"], going["reward_last"]) == (make_metrics(0).reward_mean, make_metrics(3).reward_mean)
    assert "is not JSON" in found["broken"]["fault"]


def test_a_run_that_ended_itself_is_not_called_stopped(capsys, tmp_path):
    layout = write_run(tmp_path / "hacked", done=6, iterations=60)
    values = json.loads(layout.config.read_text())
    values["config"]["monitor"] |= {"window": 1, "on_hacking": "stop"}
    layout.config.write_text(json.dumps(values))
    write_evaluation(layout, 6)
    age(layout, 10**6)
    assert listed(capsys, tmp_path)["hacked"]["state"] == "ended"
    values["config"]["monitor"]["on_hacking"] = "warn"
    layout.config.write_text(json.dumps(values))
    age(layout, 10**6)
    assert listed(capsys, tmp_path)["hacked"]["state"] == "stopped"


def test_a_run_that_was_flat_has_ended_until_it_is_continued(capsys, tmp_path):
    layout = write_run(tmp_path / "flat")
    write_evaluation(layout, 4)
    note_planned(layout, 4, 60, "flat")
    age(layout, 10**6)
    found = listed(capsys, tmp_path)["flat"]
    assert (found["state"], found["ended"], found["finished"], found["phase"]) == ("ended", "flat", True, None)
    assert "ended early" in succeed(capsys, "watch", layout.root, "--once").out
    write_rollout(layout, 4)  # sampled ahead
    age(layout, 10**6)
    assert listed(capsys, tmp_path)["flat"]["state"] == "ended"
    note_planned(layout, 4, 60)
    found = listed(capsys, tmp_path)["flat"]
    assert (found["ended"], found["finished"], found["iterations_planned"]) == (None, False, 60)


def test_a_run_that_has_only_begun_and_a_joint_one_have_no_reward(tmp_path):
    begun = read_listed(write_run(tmp_path / "begun", done=0).root)
    assert to_cells(begun, time.time())[2:5] == ("running", "0 of 6", "–")
    plain = read_listed(write_run(tmp_path / "run", done=1).root)
    assert to_cells(plain, time.time())[4] == f"{make_metrics(0).reward_mean:.3f}"
    joint = replace(plain, progress=replace(plain.progress, tasks=("one", "two")))
    assert to_cells(joint, time.time())[4] == "–"


def test_a_narrow_window_gets_two_lines_a_run(capsys, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.chdir(folder.parent)
    lines = re.sub("\x1b\\[[0-9;]*m", "", succeed(capsys, "runs").out).splitlines()
    assert lines[0] == "runs/going"
    assert lines[1].startswith("  compression, running, 4 of 6 iterations, ")
    assert all(len(line) <= 60 for line in lines[:10] if not line.startswith("damaged:"))
    assert lines[-4:-2] == ["runs/broken", "  damaged, 1 B"]


def test_a_run_itself_is_listed_and_what_lies_in_it_is_not(capsys, folder):
    write_run(folder / "going" / "rollouts" / "inner")
    assert [*listed(capsys, folder / "going")] == ["going"]
    assert "inner" not in listed(capsys, folder)


def test_links_are_followed_once_and_hidden_and_deep_folders_are_not_searched(tmp_path):
    write_run(tmp_path / "elsewhere" / "run")
    root = tmp_path / "runs"
    for hidden in (".trash/run", "1/2/3/4/run"):
        write_run(root / hidden)
    kept = write_run(root / "1" / "2" / "3" / "run").root
    (root / "a-link").symlink_to(tmp_path / "elsewhere" / "run")
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "gone")
    assert find_runs(root) == [kept, root / "a-link"]


def test_mistakes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saying = ("runs: there is no such folder", "`rlcm loop --task compression`")
    refuse(capsys, MissingFileError, "runs", saying=saying)
    (tmp_path / "file").write_text("")
    refuse(capsys, MissingFileError, "runs", "file", saying=("file: there is no such folder",))
    saying = ("s3://bucket/runs/: only folders of this machine", "`rlcm watch --once s3://bucket/runs/RUN`")
    refuse(capsys, ConfigError, "runs", "s3://bucket/runs/", saying=saying)
    (tmp_path / "runs").mkdir()
    assert succeed(capsys, "runs").out == "runs: holds no runs; start one with `rlcm loop --task compression`\n"
    assert succeed(capsys, "runs", "--json").json_line() == {"folder": "runs", "runs": [], "bytes": 0}


def test_a_damaged_file_of_a_run_is_told_and_the_others_are_listed(capsys, folder):
    layout = RunLayout(folder / "going")
    layout.metrics(2).write_text("{}")
    found = listed(capsys, folder)
    assert found["going"]["state"] == "damaged"
    assert str(layout.metrics(2)) in found["going"]["fault"]
    assert found["done"]["state"] == "done"


def test_control_characters_of_a_name_do_not_reach_the_terminal(capsys, tmp_path):
    write_run(tmp_path / "\x1b[31mred")
    assert "\x1b" not in succeed(capsys, "runs", tmp_path).out


def test_folders_are_completed(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert complete_run("runs/s") == ["runs/sweep/"]


def test_a_run_that_is_extended_has_the_iterations_of_the_newest_call(capsys, tmp_path):
    layout = write_run(tmp_path / "run", done=6)
    write_evaluation(layout, 6)
    publish_metrics(layout, make_metrics(6))
    layout.checkpoint(7).mkdir()
    found = listed(capsys, tmp_path)["run"]
    assert (found["iterations"], found["iterations_planned"], found["state"]) == (7, 7, "running")
