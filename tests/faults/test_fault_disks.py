"""Disks that are full or read-only: one line, nothing half visible, and on it goes once there is room."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fault_runs import at_each_step, meet_at_each_step, on_forking_systems

from rlcm_cli.errors import StorageFullError

pytestmark = on_forking_systems
SAYING = {"disk full": "not written, the disk is full", "read-only": "not written, the place is not writable"}
IN_OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")


@pytest.mark.parametrize("event", SAYING)
@at_each_step
def test_a_disk_that_fails_from_any_step_on(tiny_lcm, tmp_path, place, event, every):
    for outcome in meet_at_each_step(tiny_lcm, place, event, tmp_path, every):
        assert outcome.status == StorageFullError.exit_code, outcome
        assert SAYING[event] in outcome.line()
        assert str(tmp_path) in outcome.line()


@pytest.mark.slow
def test_real_file_systems_that_are_full_or_read_only(tiny_lcm, tmp_path):
    trial = (
        subprocess.run(
            [*IN_OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, text=True, check=False
        )
        if sys.platform == "linux"
        else None
    )
    if trial is None or trial.returncode:
        pytest.skip(f"a file system of one's own cannot be mounted here: {trial and trial.stderr.strip()}")
    driver = Path(__file__).with_name("mount_driver.py")
    result = subprocess.run(
        [*IN_OWN_MOUNTS, sys.executable, driver, tiny_lcm, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    print(report)
    commands = {"sample", "score", "train", "evaluate"}
    assert report["full"].keys() == report["read-only"].keys() == commands
    assert min(report["full"].values()) >= 2, "too few sizes of a disk were too small"
