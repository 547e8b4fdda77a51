"""Clocks that are wrong, and differ between machines: nothing is decided by them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fault_injection import SkewedClock
from fault_runs import SEQUENCE, command, contents, make_undisturbed, on_forking_systems, succeed

pytestmark = on_forking_systems


def skew_times(root: Path, seed: int) -> None:
    """Give every file and folder of a run a time within ten years of now, as machines with other clocks might."""
    times = random.Random(seed)  # noqa: S311
    for path in sorted(root.rglob("*")):
        moment = path.stat().st_mtime + times.uniform(-3e8, 3e8)
        os.utime(path, (moment, moment))


def test_the_commands_of_machines_whose_clocks_jump(tiny_lcm, tmp_path):
    undisturbed = make_undisturbed(tiny_lcm)
    root = tmp_path / "run"
    for place, name in enumerate(SEQUENCE):
        succeed(command(name, root, undisturbed.settings), tmp_path, SkewedClock(place))
        skew_times(root, place)
    assert contents(root) == contents(undisturbed.before(len(SEQUENCE)))
    for shown in (["inspect", root, "--verify"], ["inspect", root, "--json"]):
        succeed(shown, tmp_path, SkewedClock(len(SEQUENCE)))


@pytest.mark.slow
def test_a_loop_whose_clock_jumps(tiny_lcm, tmp_path):
    undisturbed = make_undisturbed(tiny_lcm)
    root = tmp_path / "run"
    succeed([*command("loop", root, undisturbed.settings), "--iterations", 1], tmp_path, SkewedClock(0))
    skew_times(root, 0)
    again = succeed(command("loop", root, undisturbed.settings), tmp_path, SkewedClock(1))
    assert "resuming after iteration 1" in again.out
    found, expected = contents(root), contents(undisturbed.looped)
    del found["config.json"], expected["config.json"]  # of how many iterations it was to be at first
    assert {name: found[name] for name in expected} == expected
