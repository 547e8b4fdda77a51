"""Standard streams that are closed, full, abandoned or in another encoding; paths in the home folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import refuse, succeed, write_settings
from metric_rows import make_row

from rlcm_cli.cli.app import expand_paths
from rlcm_cli.cli.display import Display, print_json
from rlcm_cli.cli.streams import prepare_streams, print_data
from rlcm_cli.errors import ConfigError
from rlcm_cli.events import IterationTrained

METRICS = {
    "reward_mean": -1.25,
    "reward_std": 0.5,
    "reward_best": -0.75,
    "rewards": {"redness": -1.0},
    "monitored": {},
    "tasks": {"compression": -1.25},
}


def start(*arguments: str, redirected: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run `rlcm` in a process of its own, with the redirections of a shell; a light command, so without torch."""
    script = f'exec "$@" {redirected}'
    words = ["sh", "-c", script, "sh", sys.executable, "-m", "rlcm_cli", *arguments]
    return subprocess.run(words, capture_output=True, check=False)


@pytest.fixture(params=["ascii", "latin-1", "cp1252"])
def narrow(request: pytest.FixtureRequest) -> io.TextIOWrapper:
    """A stream of another encoding than UTF-8."""
    return io.TextIOWrapper(io.BytesIO(), encoding=request.param)


def read_lines(stream: io.TextIOWrapper, encoding: str) -> list[str]:
    """Lines that were written."""
    stream.flush()
    return stream.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]


def test_signs_that_an_encoding_lacks_are_written_in_ascii(monkeypatch, narrow):
    monkeypatch.setattr(sys, "stdout", narrow)
    prepare_streams()
    Display(quiet=False, as_json=False).follow([IterationTrained(1, make_row(0, **METRICS))])
    print("λ 🙂 × −1 … \udcff")
    first, second = read_lines(narrow, narrow.encoding)
    assert first.replace("±", "+/-").startswith("iteration 1  reward -1.250 +/- 0.500  best")
    assert second.replace("×", "x").replace("…", "...") == "lambda \\U0001f642 x -1 ... \\udcff"


def test_data_is_utf_8_whatever_the_encoding(monkeypatch, narrow):
    monkeypatch.setattr(sys, "stdout", narrow)
    print("a")
    print_json({"name": "é 🙂"})
    print_data('x = "λ"\n')
    first, second, third = read_lines(narrow, "utf-8")
    assert (first, json.loads(second), third) == ("a", {"name": "é 🙂"}, 'x = "λ"')


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_stops_nothing_and_catches_no_file(redirected):
    ended = start("tasks", redirected=redirected)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert bool(ended.stdout) == (redirected == "2>&-")
    refused = start("tasks", "nowhere", redirected=redirected)
    assert (refused.returncode, refused.stdout) == (ConfigError.exit_code, b"")
    assert bool(refused.stderr) == ("2>&-" not in redirected)


def test_a_descriptor_that_was_closed_is_not_that_of_the_next_file(tmp_path):
    script = (
        "from rlcm_cli.cli.streams import prepare_streams\n"
        "prepare_streams()\n"
        f"file = open({str(tmp_path / 'shard')!r}, 'wb')\n"
        "import os\n"
        "os.write(1, b'a stray line of a library')\n"
    )
    subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "$0" >&-', script], check=True)
    assert (tmp_path / "shard").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_one_line_and_a_full_stderr_leaves_the_status(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for command in ("tasks", "rewards"):
        ended = start(command, redirected=">/dev/full")
        assert (ended.returncode, ended.stderr) == (1, b"rlcm: cannot print: No space left on device\n")
    assert start("tasks", "nowhere", redirected="2>/dev/full").returncode == ConfigError.exit_code


@pytest.mark.parametrize("command", [["tasks"], ["rewards"], ["--help"], ["tasks", "show", "compression"]])
def test_a_reader_that_has_left_meets_no_complaint(command):
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "rlcm_cli", *command]
    ended = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


# Home folders


def test_a_tilde_is_expanded_in_every_argument_but_a_prompt(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    given = [
        "--run=~/a",
        "--out",
        "~/b",
        "~",
        "--prompt",
        "~/cat",
        "--prompt=~",
        "--label=a=~/c",
        "a=~/d",
        "--",
        "~/e",
    ]
    assert expand_paths(given) == [
        *("--run=/homes/me/a", "--out", "/homes/me/b", "/homes/me"),
        *("--prompt", "~/cat", "--prompt=~", "--label=a=~/c", "a=~/d", "--", "/homes/me/e"),
    ]


def test_a_run_by_tilde_is_made_in_the_home_folder(capsys, monkeypatch, tmp_path, tiny_lcm):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    write_settings(home, tiny_lcm)
    succeed(capsys, "sample", "--config=~/settings.toml", "--run=~/runs/x")
    assert (home / "runs" / "x" / "config.json").is_file()
    assert list(here.iterdir()) == []


# Configuration files


def test_a_dry_run_is_a_configuration_that_makes_the_same_run(capsys, tmp_path):
    asked = ["loop", "--dry-run", "--task", "compression", "--seed", "3", "--iterations", "2"]
    printed = succeed(capsys, *asked).out
    (tmp_path / "mine.toml").write_text(printed, encoding="utf-8")
    assert succeed(capsys, "loop", "--config", tmp_path / "mine.toml", "--dry-run").out == printed
    as_json = succeed(capsys, *asked, "--json").json_line()
    assert (as_json["config"]["seed"], as_json["config"]["runtime"]["iterations"]) == (3, 2)


def test_a_byte_order_mark_is_told_and_skipped(capsys, tmp_path):
    (tmp_path / "run.toml").write_bytes(b'\xef\xbb\xbftask = "compression"\n[train]\nlearning_rate = 5e-4\n')
    shown = succeed(capsys, "loop", "--config", tmp_path / "run.toml", "--dry-run")
    assert "learning_rate = 0.0005" in shown.out.splitlines()
    assert "begins with a byte order mark" in shown.err


def test_a_configuration_that_is_too_much_is_one_line(capsys, tmp_path):
    (tmp_path / "deep.toml").write_text(f"x = {'[' * 5000}{']' * 5000}")
    refuse(capsys, ConfigError, "loop", "--config", tmp_path / "deep.toml", saying=("deep.toml", "nested too deep"))
    refuse(capsys, ConfigError, "loop", "--task", "aesthetic", "--set", f"seed={'9' * 5000}", saying=("too many",))
