"""What a command proposes to do next can be typed as it stands; what is only partly done is told as such."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import refuse, rlcm, succeed, write_settings

from rlcm_cli.errors import CorruptFileError, MissingFileError

NAME = "my 'odd' run; $HOME"


def proposed(text: str) -> list[list[str]]:
    """Words of each command after `next: `, or in backticks."""
    found = re.findall(r"(?:next|sampled|with it|once all are sampled): rlcm ([^\n]+)|`rlcm ([^`]+)`", text)
    return [shlex.split(after or ticked) for after, ticked in found]


@pytest.fixture
def settings(tiny_lcm: Path, tmp_path: Path) -> Path:
    """A file for --config that trains the tiny model on two shards."""
    return write_settings(tmp_path, tiny_lcm)


def test_a_run_whose_name_a_shell_takes_apart_is_trained_by_the_proposed_commands(
    capsys, monkeypatch, settings, tmp_path
):
    monkeypatch.chdir(tmp_path)
    shown = succeed(capsys, "sample", "--config", settings, "--run", NAME)
    for command in ("score", "train"):
        (words,) = proposed(shown.out)
        assert words == [command, "--run", NAME]
        shown = succeed(capsys, *words)
    assert shlex.split(shown.out.partition("next: ")[2].partition(", or ")[0]) == ["rlcm", "sample", "--run", NAME]


def test_the_commands_in_an_error_are_quoted(capsys, monkeypatch, settings, tmp_path):
    monkeypatch.chdir(tmp_path)
    missing = rlcm(capsys, "train", "--run", NAME).err
    assert proposed(missing) == [["loop", "--task", "NAME", "--run", NAME]]
    succeed(capsys, "sample", "--config", settings, "--run", NAME)
    unscored = refuse(capsys, MissingFileError, "train", "--run", NAME, saying=("score the rollout",))
    assert proposed(unscored) == [["score", "--run", NAME]]
    absent = refuse(capsys, MissingFileError, "evaluate", "--run", NAME, "--checkpoint", 9, saying=("000009",))
    assert proposed(absent) == [["inspect", NAME]]
    (shard, _) = sorted((tmp_path / NAME / "rollouts" / "000000").glob("shard-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = refuse(capsys, CorruptFileError, "score", "--run", NAME, saying=("quarantine",))
    assert proposed(damaged) == [["quarantine", str(shard.relative_to(tmp_path))]]


def test_a_share_that_is_sampled_or_scored_is_not_the_whole(capsys, settings, tmp_path):
    run = tmp_path / "run"
    first = succeed(capsys, "sample", "--config", settings, "--run", run, "--worker", "0/2")
    assert "1 of 2 shards sampled; waiting for worker 1; once all are sampled: rlcm score" in first.out
    scored = succeed(capsys, "score", "--run", run)
    assert f"{run}: 1 of 2 shards scored; once all are sampled: rlcm score --run {run}" in scored.out
    assert "rlcm train" not in scored.out
    as_json = succeed(capsys, "score", "--run", run, "--json").json_line()
    assert as_json == {"run": str(run), "skipped": ["score"], "complete": False, "shards": 2, "shards_done": 1}
    again = succeed(capsys, "sample", "--run", run, "--worker", "0/2", "--json").json_line()
    assert (again["iteration"], again["complete"], again["shards"], again["shards_done"]) == (1, False, 2, 1)
    whole = succeed(capsys, "sample", "--run", run, "--worker", "1/2")
    assert f": sampled; next: rlcm score --run {run}" in whole.out
    assert f"scored; next: rlcm train --run {run}" in succeed(capsys, "score", "--run", run).out
    assert succeed(capsys, "score", "--run", run, "--json").json_line()["complete"]


def test_another_reward_that_is_scored_in_part_says_so(capsys, settings, tmp_path):
    run = tmp_path / "run"
    succeed(capsys, "sample", "--config", settings, "--run", run)
    shown = succeed(capsys, "score", "--run", run, "--reward", "sharpness", "--worker", "1/2")
    assert "1 of 2 shards scored; waiting for worker 0" in shown.out
    assert proposed(shown.out) == [["score", "--run", str(run), "--reward", "sharpness"]]
