"""A run killed with SIGKILL and started again ends in the same bytes, and draws no published shard twice."""

import json
import os
from pathlib import Path

import pytest
from fork_server import launch

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
DRIVER = Path(__file__).with_name("kill_driver.py")


def drive(model, folder, *mode):
    result = launch(DRIVER, [model, folder, *mode], folder / "output")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_bytes(tiny_lcm, tmp_path):
    report = drive(tiny_lcm, tmp_path, "moments", "20")
    assert report["kills"] >= 20
    assert report["stages"] >= 5, "the moments did not spread over the run"


def test_a_run_killed_before_each_publication_ends_in_the_same_bytes(tiny_lcm, tmp_path):
    report = drive(tiny_lcm, tmp_path, "publications")
    assert report["runs"] == 1
    assert report["kills"] >= 25
