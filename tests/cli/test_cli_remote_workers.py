"""Workers as processes of their own on one run in an S3 server: one killed, two with the same shards."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import succeed, tensor_files, write_settings
from fork_server import launch
from object_stores import download

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")
DRIVER = Path(__file__).with_name("remote_worker_driver.py")
SHARDS = 6
EXAMPLE = Path(__file__).parents[2] / "examples/object_storage"


@pytest.fixture
def settings(tiny_lcm, tmp_path):
    return write_settings(tmp_path, tiny_lcm, sample={"samples": 12, "shards": SHARDS})


def command(stage, *arguments, **more):
    environment = {"RLCM_STAGE": str(stage), "TOKENIZERS_PARALLELISM": "false"}
    return {"arguments": [*map(str, arguments), "-q"], "environment": environment, **more}


def drive(folder, *rounds):
    result = launch(DRIVER, [json.dumps(rounds)], folder)
    assert result.status == 0, result.err


def receipt_address(s3, remote, number):
    """Give an address that answers once a shard is published; signed, since the driver knows no credentials."""
    return s3.url(f"{remote.removeprefix('s3://')}/rollouts/000000/shard-{number:05d}-of-{SHARDS:05d}.json")


def shards_of(s3, remote):
    """Give each published record with the time of its upload."""
    s3.invalidate_cache()
    found = s3.find(f"{remote.removeprefix('s3://')}/rollouts/000000", detail=True)
    receipts = {name for name in found if name.endswith(".json") and "shard-" in name and "/rewards/" not in name}
    return {name: found[name.replace(".json", ".safetensors")]["LastModified"] for name in receipts}


def test_a_killed_worker_is_started_again_on_another_machine(capsys, settings, s3, remote, machine, tmp_path):
    local = tmp_path / "local"
    succeed(capsys, "sample", "--run", local, "--config", settings, "-q")
    succeed(capsys, "score", "--run", local, "-q")
    succeed(capsys, "train", "--run", local, "-q")

    sample = ("sample", "--run", remote, "--config", settings, "--worker")
    killed = command(tmp_path / "b", *sample, "1/2", kill_when=receipt_address(s3, remote, 1))
    drive(tmp_path / "first", [command(tmp_path / "a", *sample, "0/2"), killed])
    before = shards_of(s3, remote)
    assert 3 <= len(before) < SHARDS, "the worker was to be killed in the middle"
    time.sleep(1)  # the times are whole seconds
    drive(
        tmp_path / "second",
        [command(tmp_path / "c", *sample, "1/2")],
        [command(tmp_path / stage, "score", "--run", remote, "--worker", f"{k}/2") for k, stage in enumerate("ac")],
        [command(tmp_path / "d", "train", "--run", remote)],
    )
    after = shards_of(s3, remote)
    assert len(after) == SHARDS
    assert {name: after[name] for name in before} == before, "a published shard was drawn again"
    assert tensor_files(download(s3, remote, tmp_path / "copy")) == tensor_files(local)


def test_two_workers_with_all_shards_at_once(capsys, settings, s3, remote, machine, tmp_path):
    local = tmp_path / "local"
    succeed(capsys, "sample", "--run", local, "--config", settings, "-q")
    drive(
        tmp_path / "both",
        [command(tmp_path / stage, "sample", "--run", remote, "--config", settings) for stage in "ab"],
    )
    assert tensor_files(download(s3, remote, tmp_path / "copy")) == tensor_files(local)
    machine("c")
    succeed(capsys, "score", "--run", remote, "-q")


@pytest.mark.slow
def test_the_example_on_two_workers(s3, remote, tmp_path):
    program = tmp_path / "bin/rlcm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rlcm_cli "$@"\n')
    program.chmod(0o755)

    def start(script, *arguments, **variables):
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "RUN": remote, **variables}
        environment.update(ITERATIONS="1", PAUSE="1")
        return subprocess.Popen([EXAMPLE / script, *arguments], env=environment)

    options = ("--task", "compression", "--samples", "8", "--steps", "3", "--set", "sample.shards=2")
    options += ("--set", "train.minibatch_size=8", "--set", "train.min_count=2")
    stages = [{"RLCM_STAGE": str(tmp_path / name)} for name in "abc"]
    processes = [start("worker.sh", *options, WORKER=f"{k}/2", **stages[k]) for k in range(2)]
    processes.append(start("train.sh", **stages[2]))
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    assert s3.exists(f"{remote.removeprefix('s3://')}/checkpoints/000001/complete.json")
