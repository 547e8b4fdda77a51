"""Ctrl-C in the midst of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import checkpoints, succeed, tensor_files, write_settings

LONGEST = 300  # seconds; a loaded machine starts a process slowly


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent to a process")
def test_ctrl_c_says_how_to_go_on_and_loses_nothing(capsys, tiny_lcm, tmp_path):
    settings = write_settings(tmp_path, tiny_lcm)
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    command = ["loop", "--config", settings, "--run", stopped, "--iterations", "500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcm_cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(stopped / "checkpoints/000001", process)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=LONGEST)
    assert process.returncode == 130, complaint
    assert complaint == "rlcm: interrupted; nothing is lost: rerun the same command to resume\n"

    done = checkpoints(stopped)[-1]
    assert 1 <= done < 500
    succeed(capsys, "loop", "--run", stopped, "--iterations", done + 1)
    succeed(capsys, "loop", "--config", settings, "--run", straight, "--iterations", done + 1)
    assert tensor_files(stopped) == tensor_files(straight)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LONGEST
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
