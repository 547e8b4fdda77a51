"""Run `rlcm` in several processes at once, and kill one: `python remote_worker_driver.py PLAN`.

PLAN is a JSON list of rounds, each a list of commands that run at once: `arguments`, `environment`, and
`kill_when`, an address that answers once the process is to be killed. One process imports; every command is a fork
of it, which costs no second.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

import diffusers  # noqa: E402, F401
import peft  # noqa: E402, F401

from rlcm_cli.cli.app import main  # noqa: E402
from rlcm_cli.phases import sample  # noqa: E402
from rlcm_cli.store.remote import publishing  # noqa: E402


def start(command):
    process = os.fork()
    if process:
        return process
    os.environ.update(command["environment"])
    if "kill_when" in command:
        dawdle()
    try:
        main(command["arguments"])
    except SystemExit as leaving:
        os._exit(int(leaving.code or 0))
    os._exit(70)


def dawdle():
    """Leave time between two shards for the first one to be uploaded, and for the process to be killed."""
    draw, publishing.PAUSE = sample.draw_shard, 0.01

    def draw_late(*arguments, **options):
        time.sleep(1.5)
        yield from draw(*arguments, **options)

    sample.draw_shard = draw_late


def wait_for(address):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address):  # noqa: S310
                return
        except urllib.error.HTTPError:
            time.sleep(0.02)
    raise TimeoutError(address)


for commands in json.loads(sys.argv[1]):
    processes = [start(command) for command in commands]
    for process, command in zip(processes, commands, strict=True):
        expected = 0
        if "kill_when" in command:
            wait_for(command["kill_when"])
            os.kill(process, signal.SIGKILL)
            expected = -signal.SIGKILL
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status != expected:
            sys.exit(f"{command['arguments']} ended with {status}")
