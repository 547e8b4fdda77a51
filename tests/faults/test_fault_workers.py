"""Workers that hang, come back late, or were given the same shard: each file is published once."""

from __future__ import annotations

import itertools
import signal
from collections import Counter
from pathlib import Path

import pytest
from fault_injection import Namings, StepFault
from fault_runs import (
    DERIVED,
    SEQUENCE,
    Command,
    at_each_step,
    check_left,
    command,
    contents,
    identities,
    make_undisturbed,
    on_forking_systems,
    start,
    succeed,
)

from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.verification import verify_run

pytestmark = on_forking_systems


def check_published_once(root: Path, *processes: Command) -> None:
    named = Counter(name for process in processes for name in process.named())
    # Processes that make a run at once each write what it begins with, the same bytes.
    several = (*DERIVED, "inputs.json")
    again = [name for name, count in named.items() if count > 1 and name.split("/")[0] not in several]
    assert not again, f"{again} of {root} were published again"


@at_each_step
def test_another_takes_over_from_one_that_hangs_and_comes_back(tiny_lcm, tmp_path, place, every):
    undisturbed = make_undisturbed(tiny_lcm)
    expected = contents(undisturbed.before(place + 1))
    for step in itertools.count(1 + place, every):
        root = undisturbed.copy_before(place, tmp_path / f"{step}")
        arguments = command(SEQUENCE[place], root, undisturbed.settings)
        slow = start(arguments, tmp_path, StepFault(root, step, "held"), Namings(root))
        if not slow.wait_until_held():
            break
        slow.send(signal.SIGSTOP)
        try:
            other = start(arguments, tmp_path, Namings(root))
            assert other.finish().status == 0
            published = check_left(root, identities(root))
            assert contents(root) == expected
            slow.release()
        finally:  # nobody could end it
            slow.send(signal.SIGCONT)
        outcome = slow.finish()
        assert (outcome.status, outcome.err) == (0, "")
        check_left(root, published)
        assert contents(root) == expected, f"held before step {step}"
        check_published_once(root, slow, other)


@at_each_step
def test_two_that_do_the_same_at_once(tiny_lcm, tmp_path, place, every):
    undisturbed = make_undisturbed(tiny_lcm)
    expected = contents(undisturbed.before(place + 1))
    for step in itertools.count(1 + place, every):
        root = undisturbed.copy_before(place, tmp_path / f"{step}")
        arguments = command(SEQUENCE[place], root, undisturbed.settings)
        twins = [start(arguments, tmp_path, StepFault(root, step, "held"), Namings(root)) for _ in range(2)]
        held = [twin.wait_until_held() for twin in twins]
        for twin in twins:
            twin.release()
        for twin in twins:
            outcome = twin.finish()
            assert (outcome.status, outcome.err) == (0, "")
        check_left(root, {})
        assert contents(root) == expected, f"both held before step {step}"
        check_published_once(root, *twins)
        if not any(held):
            break


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_late_one_whose_values_differ_spoils_nothing(tiny_lcm, tmp_path, every):
    """As a judge on a server gives them, or another kind of processor."""
    undisturbed = make_undisturbed(tiny_lcm)
    reward = tmp_path / "moody.py"
    reward.write_text("import torch\ndef judge(images, prompts, metadata):\n    return torch.randn(len(images))\n")
    for step in itertools.count(1, every):
        root = undisturbed.copy_before(1, tmp_path / f"{step}")
        arguments = ["score", "--run", root, "--reward", f"{reward}:judge", "--no-cache"]
        slow = start(arguments, tmp_path, StepFault(root, step, "held"))
        if not slow.wait_until_held():
            break
        succeed(arguments, tmp_path)
        published = identities(root)
        slow.release()
        assert slow.finish().status == 0
        assert verify_run(RunLayout(root)) == []
        after = identities(root)
        assert {name: after[name] for name in published} == published, f"held before step {step}"
