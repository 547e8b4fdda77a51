"""Kill runs with SIGKILL and start them again; fail unless each ends as one that nobody killed.

`python kill_driver.py MODEL FOLDER moments KILLS` kills at random moments, `… publications` right before
each naming of a file. One process imports and loads; every attempt is a fork of it, which costs no second.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

torch.set_num_threads(1)

from phase_runs import fingerprint, finish, make_config, published_shards  # noqa: E402

from rlcm_cli.phases.loop import loop  # noqa: E402
from rlcm_cli.phases.score import load_scorers  # noqa: E402
from rlcm_cli.runs.policy import load_policy_model  # noqa: E402
from rlcm_cli.runs.run import create_run  # noqa: E402

MODEL, FOLDER, MODE = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
CONFIG = make_config(MODEL)
LOADED = load_policy_model(CONFIG)


def start(root, prepare=lambda: None):
    """Fork a process that makes or continues a run; give its id."""
    process = os.fork()
    if process:
        return process
    try:
        prepare()
        run = create_run(root, CONFIG)
        finish(loop(run, LOADED, load_scorers(run)))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def was_killed(process):
    """Wait for a process; tell whether it was killed. Anything but that and success is an error."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the run ended with status {status}"
    return status != 0


def die_before_the_naming_after_the_first_new_one():
    """Make each attempt publish one name more than the attempt before, and die before the next."""
    named = []

    def wrap(function):
        def name_or_die(source, target, *arguments, **options):
            if named:
                os.kill(os.getpid(), signal.SIGKILL)
            if not os.path.exists(target):
                named.append(target)
            return function(source, target, *arguments, **options)

        return name_or_die

    os.link, os.replace, os.rename = wrap(os.link), wrap(os.replace), wrap(os.rename)


def check_nothing_was_drawn_twice(before, root):
    after = published_shards(root)
    assert {path: after.get(path) for path in before} == before, "a published shard was written again or lost"
    return after


def main():
    began = time.perf_counter()
    assert not was_killed(start(FOLDER / "undisturbed"))
    duration = time.perf_counter() - began
    expected = fingerprint(FOLDER / "undisturbed")

    moments = random.Random(0)  # noqa: S311
    wanted = int(sys.argv[4]) if MODE == "moments" else 1
    kills, runs, killed_at = 0, 0, []
    while kills < wanted:
        root, shards, killed = FOLDER / f"run-{runs}", {}, True
        while killed:
            if MODE == "moments":
                process = start(root)
                time.sleep(moments.expovariate(4 / duration))
                os.kill(process, signal.SIGKILL)
            else:
                process = start(root, die_before_the_naming_after_the_first_new_one)
            killed = was_killed(process)
            shards = check_nothing_was_drawn_twice(shards, root)
            if killed:
                kills += 1
                killed_at.append(sum(file.is_file() for file in root.rglob("*")))
        runs += 1
        found = fingerprint(root)
        different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        assert not different, f"after {kills} kills other files than undisturbed: {different}"
        shutil.rmtree(root)
    print(json.dumps({"kills": kills, "runs": runs, "stages": len(set(killed_at)), "seconds": round(duration, 2)}))


main()
