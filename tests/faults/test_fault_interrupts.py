"""Ctrl-C at any moment of any command: one line, status 130, and nothing lost."""

from __future__ import annotations

import random
import signal
import time

import pytest
from fault_runs import (
    at_each_step,
    check_left,
    command,
    contents,
    identities,
    make_undisturbed,
    meet_at_each_step,
    on_forking_systems,
    start,
    succeed,
)

pytestmark = on_forking_systems
INTERRUPTED = 130
LINE = "rlcm: interrupted; nothing is lost: rerun the same command to resume"


@at_each_step
def test_ctrl_c_before_any_step_on_the_disk(tiny_lcm, tmp_path, place, every):
    for outcome in meet_at_each_step(tiny_lcm, place, "interrupted", tmp_path, every):
        assert (outcome.status, outcome.line()) == (INTERRUPTED, LINE)


@pytest.mark.slow
def test_a_loop_interrupted_again_and_again_ends_as_if_nobody_had(tiny_lcm, tmp_path):
    undisturbed = make_undisturbed(tiny_lcm)
    moments = random.Random(0)  # noqa: S311
    root = tmp_path / "run"
    arguments = command("loop", root, undisturbed.settings)
    published, interrupts = identities(root), 0
    for _ in range(20):
        process = start(arguments, tmp_path)
        process.wait_until_said(f"run {root}")
        time.sleep(moments.uniform(0, undisturbed.durations[-1] / 3))
        process.send(signal.SIGINT)
        outcome = process.finish()
        published = check_left(root, published)
        if outcome.status == 0:
            break
        assert (outcome.status, outcome.line()) == (INTERRUPTED, LINE)
        interrupts += 1
    assert interrupts >= 3
    succeed(arguments, tmp_path)
    check_left(root, published)
    assert contents(root) == contents(undisturbed.looped)
