"""`rlcm watch`: the view of a run by its files, until it is done."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from command_line import refuse, succeed
from reported_runs import make_metrics, write_evaluation, write_reported

from rlcm_cli.cli.watch import read_watched_run, repeat
from rlcm_cli.errors import MissingFileError
from rlcm_cli.report.run.progress import RunProgress
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import publish_metrics
from rlcm_cli.store.timings import note_planned


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run of six iterations of which four are done, one and a half evaluated."""
    found = write_reported(tmp_path / "run", checkpoints=(0, 2), rollouts=4, runtime={"iterations": 6})
    for number in range(5):
        found.checkpoint(number).mkdir(parents=True)
    return found


def finish(layout: RunLayout) -> None:
    """Do the iterations that are left."""
    for number in (5, 6):
        publish_metrics(layout, make_metrics(number - 1))
        layout.checkpoint(number).mkdir()
    write_evaluation(layout, 6)


def test_once_is_a_plain_snapshot(capsys, layout, monkeypatch):
    monkeypatch.chdir(layout.root.parent)  # a long path would leave no room for the task
    shown = succeed(capsys, "watch", layout.root.name, "--once")
    assert shown.err == ""
    for words in ("compression", "4 of 6", "reward", "monitored recog", "checkpoints 0, 2", "changed"):
        assert words in shown.out
    assert all(character.isprintable() for line in shown.out.splitlines() for character in line)


def test_a_run_that_is_not_there_is_one_line(capsys, tmp_path):
    saying = ("there is no run", "rlcm loop --task NAME --run")
    refuse(capsys, MissingFileError, "watch", tmp_path / "none", saying=saying)
    (tmp_path / "empty").mkdir()
    refuse(capsys, MissingFileError, "watch", tmp_path / "empty", "--once", saying=("there is no run",))


def test_piped_it_prints_an_iteration_a_line_and_leaves_when_the_run_is_done(capsys, layout):
    later = threading.Timer(0.5, finish, [layout])
    later.start()
    lines = succeed(capsys, "watch", layout.root, "--every", "0.1").out.splitlines()
    later.join()
    assert [line.split()[1] for line in lines] == [f"{number}/6" for number in range(1, 7)]
    assert "reward 1.535 ± 1.100  best 3.535  monitored: recognition -1.000" in lines[0]


def test_a_run_is_done_when_two_readings_in_turn_say_so():
    done = RunProgress("a run", 1, (), rows=(make_metrics(0),), idle=True)
    under_way = RunProgress("a run", 1, (), rows=(make_metrics(0),), idle=False)
    given = iter([under_way, done, under_way, done, done, under_way])
    assert len(list(repeat(lambda _: next(given), 0.0))) == 5


def test_hacking_is_told_and_ends_a_run_that_it_stops(layout):
    for number in range(5, 7):
        publish_metrics(layout, make_metrics(number - 1))
        layout.checkpoint(number).mkdir()
    config = layout.config.read_text()
    settings = '"monitor": {"rewards": ["recognition"], "window": 1, "fall": 0.5, "on_hacking": "stop"}'
    start = config.index('"monitor": {')
    end = config.index("}", start) + 1
    layout.config.write_text(config[:start] + settings + config[end:].replace('"iterations": 6', '"iterations": 60'))
    progress = read_watched_run(str(layout.root), None)
    assert len(progress.warnings) == 1
    assert progress.warnings[0].startswith("hacking: the monitored reward 'recognition' fell")
    assert progress.ended == "hacking"
    assert not progress.finished
    write_evaluation(layout, 6)
    assert read_watched_run(str(layout.root), progress).finished


def age(layout: RunLayout, seconds: float) -> None:
    """Make every file of a run that much older."""
    for place in [layout.root, *layout.root.rglob("*")]:
        os.utime(place, (time.time() - seconds,) * 2)


def test_a_run_that_has_not_changed_for_long_looks_stopped(capsys, layout, monkeypatch):
    monkeypatch.chdir(layout.root.parent)
    for seconds, stopped in ((60, False), (3600, True)):
        age(layout, seconds)
        shown = succeed(capsys, "watch", layout.root.name, "--once").out
        assert ("stopped?" in shown) == stopped
        assert ("no change for 60 min (an iteration takes" in shown) == stopped
        assert (" left" in shown) == (not stopped)
        told = succeed(capsys, "watch", layout.root.name, "--once", "--json").json_line()
        assert (told["iterations"], told["iterations_planned"], told["stopped"]) == (4, 6, stopped)
        assert told["metrics"]["iteration"] == 3


def test_a_run_that_is_done_is_not_called_stopped(capsys, layout):
    finish(layout)
    age(layout, 10**6)
    assert "stopped?" not in succeed(capsys, "watch", layout.root, "--once").out
    told = succeed(capsys, "watch", layout.root, "--json", "--every", "0.1").json_line()
    assert (told["finished"], told["stopped"], told["iterations"]) == (True, False, 6)


def test_the_iterations_are_those_that_the_newest_call_asked_for(layout):
    note_planned(layout, 0, 3)
    note_planned(layout, 2, 4)
    progress = read_watched_run(str(layout.root), None)
    assert (progress.done, progress.planned) == (4, 4)
    assert progress.phase is not None
    assert progress.phase.name == "evaluate"
