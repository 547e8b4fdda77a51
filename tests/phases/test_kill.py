"""A run killed with SIGKILL and started again ends in the same bytes, and draws no published shard twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
DRIVER = Path(__file__).with_name("kill_driver.py")


def drive(model, folder, *mode):
    paths = [DRIVER.parent.parent, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    result = subprocess.run(
        [sys.executable, DRIVER, model, folder, *mode], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_bytes(tiny_lcm, tmp_path):
    report = drive(tiny_lcm, tmp_path, "moments", "20")
    assert report["kills"] >= 20
    assert report["stages"] >= 5, "the moments did not spread over the run"


def test_a_run_killed_before_each_publication_ends_in_the_same_bytes(tiny_lcm, tmp_path):
    report = drive(tiny_lcm, tmp_path, "publications")
    assert report["runs"] == 1
    assert report["kills"] >= 25
