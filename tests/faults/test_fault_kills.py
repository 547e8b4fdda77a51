"""Killed at any moment, and started again: nothing lost, nothing used twice, the same adapter."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from fault_runs import (
    ITERATION,
    KILLED,
    SEQUENCE,
    Undisturbed,
    check_left,
    command,
    contents,
    identities,
    leftovers,
    make_undisturbed,
    meet_at_each_step,
    on_forking_systems,
    start,
    succeed,
)

pytestmark = on_forking_systems
LEAST = {"sample": 25, "score": 25, "train": 25, "evaluate": 10, "loop": 25}
"""How often each command is killed at least, of two hundred times in all."""


class Killer:
    """Kills commands at moments drawn from the time that they take, and counts where it hit."""

    def __init__(self, undisturbed: Undisturbed) -> None:
        self.undisturbed = undisturbed
        self.durations = dict(zip([*SEQUENCE, "loop"], undisturbed.durations, strict=True))
        self.moments = random.Random(0)  # noqa: S311
        self.kills: Counter[str] = Counter()
        self.stages: defaultdict[str, set[int]] = defaultdict(set)
        self.in_midst_of_writing = 0

    def kill_and_finish(self, name: str, root: Path, times: int) -> None:
        """Kill a command some times, unless it is quicker, and then let it end."""
        arguments, folder = command(name, root, self.undisturbed.settings), root.parent
        published = identities(root)
        for _ in range(times):
            torn = leftovers(root)
            process = start(arguments, folder)
            time.sleep(self.moments.uniform(0, self.durations[name]))
            process.send(signal.SIGKILL)
            outcome = process.finish()
            published = check_left(root, published)
            if outcome.status != KILLED:
                assert outcome.status == 0, outcome
                self.durations[name] *= 0.7  # the machine is less busy than it was, or less was left to do
                break
            self.durations[name] *= 1.05
            self.kills[name] += 1
            self.stages[name].add(len(published))
            self.in_midst_of_writing += leftovers(root) > torn
        succeed(arguments, folder)
        check_left(root, published)

    def check_end(self, root: Path, expected: Path) -> None:
        """Fail unless a run is what it would be had nobody killed it."""
        assert contents(root) == contents(expected), f"after {dict(self.kills)} kills"
        shutil.rmtree(root)


@pytest.mark.slow  # test_kill.py kills the loop at twenty moments by default
def test_runs_killed_at_two_hundred_random_moments_end_as_if_nobody_had(tiny_lcm, tmp_path):
    undisturbed = make_undisturbed(tiny_lcm)
    killer = Killer(undisturbed)
    for number in itertools.count():
        root = tmp_path / f"{number}"
        for name in SEQUENCE:
            killer.kill_and_finish(name, root, 3)
        killer.check_end(root, undisturbed.before(len(SEQUENCE)))
        killer.kill_and_finish("loop", root, 12)
        killer.check_end(root, undisturbed.looped)
        if killer.kills.total() >= 200 and all(killer.kills[name] >= least for name, least in LEAST.items()):
            break
    stages = {name: len(found) for name, found in killer.stages.items()}
    print(f"kills {dict(killer.kills)}, numbers of files found {stages}, amid writing {killer.in_midst_of_writing}")
    assert sum(stages.values()) >= 12, "the moments did not spread over the commands"
    assert killer.in_midst_of_writing >= 5


@pytest.mark.parametrize(
    ("place", "every"),
    [
        pytest.param(SEQUENCE.index("score"), 11, id="score, some steps"),
        *(pytest.param(place, 1, id=SEQUENCE[place], marks=pytest.mark.slow) for place in ITERATION),
    ],
)
def test_a_command_killed_before_any_step_on_the_disk_is_done_by_running_it_again(tiny_lcm, tmp_path, place, every):
    steps = 0
    for outcome in meet_at_each_step(tiny_lcm, place, "killed", tmp_path, every):
        assert outcome.status == KILLED, outcome
        steps += 1
    assert steps * every >= 9
