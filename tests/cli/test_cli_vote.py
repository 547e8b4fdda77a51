"""`rlcm vote` on the command line: what it counts, prints, stores and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from command_line import refuse, succeed
from voted_runs import prefer_bright, vote_all, write_grey_evaluation, write_voted

from rlcm_cli.errors import ConfigError, MissingFileError, StoreError
from rlcm_cli.store.votes import vote_files
from rlcm_cli.voting.contests import (
    contests_of_evaluations,
    contests_of_rollout,
    read_evaluation_images,
    read_rollout_images,
)
from rlcm_cli.voting.selection import list_contenders

LONGEST = 120  # seconds; a loaded machine starts a process slowly
VOTER = "0123abcd"


@pytest.fixture
def run(tmp_path):
    return write_voted(tmp_path / "run", greys=[(10, 200, 90), (250, 30, 120)])


def vote_on_rollout(run):
    bright = prefer_bright(read_rollout_images(run.layout, 0))
    vote_all(run, contests_of_rollout(run.layout, 0, ["compression"]), bright, VOTER)


def vote_on_evaluations(run):
    for checkpoint in (0, 4):
        write_grey_evaluation(run, checkpoint, [20 * checkpoint + row for row in range(12)])
    contenders = list_contenders({"run": run})
    gallery = {**read_evaluation_images(contenders[0]), **read_evaluation_images(contenders[1])}
    vote_all(run, contests_of_evaluations(contenders), prefer_bright(gallery), VOTER)


def test_the_count_says_what_the_votes_came_to_and_what_is_next(capsys, run):
    root = run.layout.root
    assert succeed(capsys, "vote", root, "--count").out.splitlines()[1:] == [f"{root}: no votes yet"]
    vote_on_rollout(run)
    vote_on_evaluations(run)
    assert succeed(capsys, "vote", root, "--count").out.splitlines()[1:] == [
        f"{root}: 18 votes by 1 voter, 0 ties, 0 skipped",
        "checkpoint 4 against checkpoint 0: preferred; it wins 100.0 % (95 % interval 75.8 to 100.0 %) over 12 "
        "prompts, 12 votes",
        "rollout 0: 6 of 6 images have a score, the reward `votes`",
        f"next: rlcm train --run {root}",
    ]


def test_json_has_the_same_and_the_table_is_written(capsys, run, tmp_path):
    vote_on_rollout(run)
    pairs = tmp_path / "pairs.csv"
    found = succeed(capsys, "vote", run.layout.root, "--count", "--json", "--pairs", pairs).json_line()
    assert found == {
        "run": str(run.layout.root),
        "votes": 6,
        "ties": 0,
        "skipped": 0,
        "voters": 1,
        "agreement": None,
        "comparisons": [],
        "rollouts": {"0": {"images": 6, "scored": 6}},
        "pairs": 6,
        "pairs_file": str(pairs),
    }
    assert len(pairs.read_text().splitlines()) == 7


def test_the_report_shows_what_people_said_of_the_held_out_images(capsys, tmp_path):
    pytest.importorskip("vl_convert", reason="the report's charts need the extra `report`")
    run = write_voted(tmp_path / "run", rewards=("compressibility",))
    vote_on_evaluations(run)
    shown = succeed(capsys, "vote", run.layout.root, "--count").out.splitlines()
    assert shown[-1] == f"next: rlcm report {run.layout.root}, which shows the scores of the held-out images"
    succeed(capsys, "report", run.layout.root)
    assert "votes" in (run.layout.root / "report.html").read_text()


def test_votes_of_a_run_on_object_storage_are_published(capsys, run, remote):
    from fsspec.core import url_to_fs

    url = f"{remote}/voted"
    files, path = url_to_fs(url)
    files.put(f"{run.layout.root}/", path, recursive=True)
    vote_on_rollout(run)
    files.put(f"{run.layout.votes}/", f"{path}/votes", recursive=True)
    assert succeed(capsys, "vote", url, "--count", "--json").json_line()["votes"] == 6
    assert [name for name in files.find(path) if "/rewards/votes-" in name and name.endswith(".json")]


@pytest.mark.skipif(os.name != "posix", reason="a signal is sent to a process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page_and_counts(run, number):
    vote_on_rollout(run)
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcm_cli", "vote", run.layout.root, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline().strip() for _ in range(4)]
        address, _, key = lines[2].removeprefix("open ").partition("#")
        assert address.startswith("http://127.0.0.1:")
        assert len(key) > 20
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}api/session", timeout=LONGEST)  # noqa: S310
        asked = urllib.request.Request(f"{address}api/session", headers={"Authorization": f"Bearer {key}"})  # noqa: S310
        with urllib.request.urlopen(asked, timeout=LONGEST) as answer:  # noqa: S310
            assert json.load(answer)["voters"] == [{"voter": VOTER, "done": 6}]
        process.send_signal(number)
        out, err = process.communicate(timeout=LONGEST)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (0, "")
    assert lines[1] == "images of rollout 0: 6 pairs of 6 images for each voter"
    assert "6 votes by 1 voter" in out


def test_what_cannot_be_voted_on_is_refused_in_one_line(capsys, run, tmp_path):
    root = run.layout.root
    refuse(capsys, StoreError, "vote", tmp_path / "none", saying=("is not a run directory",))
    refuse(capsys, ConfigError, "vote", root, root, saying=("given twice",))
    refuse(capsys, MissingFileError, "vote", root, "--rollout", 7, saying=("no such rollout",))
    refuse(capsys, ConfigError, "vote", root, "--checkpoint", 7, saying=("--checkpoint 7", "twice"))
    both = ("--checkpoint", 0, "--checkpoint", 7)
    refuse(capsys, MissingFileError, "vote", root, *both, saying=("has no held-out images", "rlcm evaluate"))
    refuse(capsys, ConfigError, "vote", root, "--pairs", tmp_path / "x.txt", saying=("ends in .csv",))
    refuse(capsys, ConfigError, "vote", root, "--host", "203.0.113.7", saying=("cannot be listened on",))
    vote_on_rollout(run)
    vote_files(run.layout, VOTER)[2].write_text("{")
    refuse(capsys, StoreError, "vote", root, "--count", saying=("votes/0123abcd/000002.json", "quarantine"))
