"""Many processes on one host, started as users do: they compute what one does, and an accident loses nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from fork_server import launch_together
from phase_runs import fingerprint, make_config, make_loop
from PIL import Image
from plain_diffusion import build_plain_diffusion

from rlcm_cli.errors import ConfigError, WorkerLostError
from rlcm_cli.learning.costs import phase_seconds, read_phase_times
from rlcm_cli.processes import join as join_module
from rlcm_cli.processes.job import Processes
from rlcm_cli.processes.join import check_shares, is_first_to_complain, join_processes
from rlcm_cli.processes.worker import Worker, parse_worker
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.checkpoint import read_weights
from rlcm_cli.store.manifest import read_manifest

HERE = Path(__file__).parent
LAUNCHED = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def launch(*arguments, processes=2):
    """Start a script in several processes, as `torchrun` does."""
    paths = [HERE, HERE.parent / "helpers", os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": os.environ["RLCM_CACHE"],
    }
    # After "--", since argparse takes a script's --run for an abbreviation of torchrun's --run-path.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
    return subprocess.run(
        [*launcher, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=280
    )


def complaints(result):
    return [line for line in result.stderr.splitlines() if line.startswith("rlcm: ")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "set"
    folder.mkdir()
    for number, colour in enumerate(["red", "olive", "navy"]):
        Image.new("RGB", (20, 16), colour).save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "text": f"a cat {number}"} for number in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def driven(tiny_lcm, pictures, tmp_path_factory):
    """Give the driver's report and the folder of its runs."""
    folder = tmp_path_factory.mktemp("processes")
    plain = build_plain_diffusion(folder / "plain", tiny_lcm)
    environment = {"HF_DATASETS_CACHE": os.environ["RLCM_CACHE"]}
    leader, other = launch_together(
        HERE / "process_driver.py", [tiny_lcm, plain, pictures, folder], folder / "output", environment
    )
    assert (leader.status, other.status) == (0, 0), leader.err + other.err
    return json.loads(leader.out), folder


CASES = ["ppo", "grpo", "rebel", "rwr", "teacher", "backprop", "pretraining", "one transition"]


class TestTwoProcesses:
    @pytest.mark.parametrize("case", CASES)
    def test_have_the_gradient_of_one(self, driven, case):
        found = driven[0][case]
        assert found["difference"] <= 1e-6
        assert found["the same bytes"]
        expected, metrics = found["metrics"]
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert metrics["ratio_drift"] > 1e-5, "the policy is the one that drew the samples: little is tested"
        shares = found["share of predictions"]
        assert sum(shares) == pytest.approx(1)
        assert max(shares) == 1 if case == "one transition" else max(shares) < 0.6

    def test_draw_the_shards_of_one_and_train_to_its_weights(self, driven, tiny_lcm, tmp_path):
        config = make_config(tiny_lcm, train={"minibatch_size": 4})
        alone = make_loop(tmp_path / "alone", config)
        together = open_run(driven[1] / "straight")
        expected, found = fingerprint(alone.layout.root), fingerprint(together.layout.root)
        assert expected.keys() == found.keys()
        untrained = [name for name in found if name.startswith(("rollouts/000000", "evaluations/000000"))]
        assert {name: found[name] for name in untrained} == {name: expected[name] for name in untrained}
        start, one, two = (
            torch.cat([tensor.flatten() for _, tensor in sorted(read_weights(run.layout, number).items())])
            for run, number in ((alone, 0), (alone, 2), (together, 2))
        )
        assert (two - one).norm() <= 1e-5 * (one - start).norm()

    def test_continue_a_run_to_the_bit(self, driven):
        straight, resumed = (fingerprint(driven[1] / name) for name in ("straight", "resumed"))
        assert straight.pop("config.json") != resumed.pop("config.json")  # it was begun with fewer iterations
        assert {name: resumed.get(name) for name in straight} == straight
        assert all(name.startswith("evaluations/000001") for name in resumed.keys() - straight.keys())


class TestAccidents:
    def test_a_killed_process_ends_the_job_in_one_line_and_a_restart_loses_nothing(self, driven, tiny_lcm, tmp_path):
        run = create_run(tmp_path / "run", make_config(tiny_lcm, train={"minibatch_size": 4}))
        killed = launch(HERE / "process_failure.py", "killed", "loop", "--run", run.layout.root)
        assert killed.returncode != 0
        [line] = complaints(killed)
        assert "nothing is lost; rerun the same command to resume" in line
        assert "WorkerLostError" not in killed.stderr, "a traceback"

        leader, other = launch_together(
            HERE / "process_failure.py", ["spared", "loop", "--run", run.layout.root, "--json"], tmp_path / "output"
        )
        assert (leader.status, other.status) == (0, 0), leader.err + other.err
        [line] = leader.out.splitlines()
        assert json.loads(line)["checkpoint"] == 2
        found, expected = fingerprint(run.layout.root), fingerprint(driven[1] / "straight")
        assert {name: found.get(name) for name in expected} == expected

    def test_an_error_of_one_process_is_the_only_line(self, tiny_lcm, tmp_path):
        run = create_run(tmp_path / "run", make_config(tiny_lcm))
        ends = launch_together(
            HERE / "process_failure.py", ["broken", "loop", "--run", run.layout.root], tmp_path / "output"
        )
        assert all(end.status != 0 for end in ends)
        lines = [line for end in ends for line in end.err.splitlines()]
        assert [line for line in lines if line.startswith("rlcm: ")] == [
            "rlcm: reward 'compressibility': no longer works"
        ]
        assert not any("Traceback" in line for line in lines)

    @pytest.mark.slow
    def test_a_mistake_of_the_command_line_is_one_line(self, tmp_path):
        result = launch(HERE / "process_failure.py", "spared", "loop", "--task", "nonsense", "--run", tmp_path / "run")
        assert result.returncode != 0
        assert len(complaints(result)) == 1


class TestDivision:
    @pytest.mark.parametrize(("count", "size"), [(10, 1), (10, 3), (2, 4), (0, 2)])
    def test_parts_are_everything_once_in_order(self, count, size):
        parts = [Processes(rank, size).part(count) for rank in range(size)]
        assert [item for part in parts for item in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_shards_of_a_job_that_is_one_of_several(self):
        workers = [Processes(rank, 2).divide(Worker(index, 3)) for index in range(3) for rank in range(2)]
        assert all(sum(worker.takes(shard) for worker in workers) == 1 for shard in range(20))

    def test_auto_is_the_whole_where_a_launcher_divides(self):
        assert parse_worker("auto", LAUNCHED) == Worker()
        assert Processes(1, 4).divide(parse_worker("auto", LAUNCHED)) == Worker(1, 4)

    def test_seconds_are_those_of_the_leaders_shards(self, driven, tmp_path):
        run = open_run(driven[1] / "straight")
        manifest = read_manifest(run.layout.manifest(0))
        times = read_phase_times(run.layout, manifest)
        own, whole = phase_seconds(times, 1.0, Processes(0, 2)), phase_seconds(times, 1.0)
        assert 0 < own["sample_seconds"] < whole["sample_seconds"]
        assert own["cpu_seconds"] == whole["cpu_seconds"] > 1.0


class TestAlone:
    def test_a_single_process_changes_nothing(self):
        processes = join_processes("cpu", {})
        assert processes == join_processes("cpu", {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}) == Processes()
        tensor = torch.arange(3.0)
        processes.sum(tensor)
        assert tensor.tolist() == [0, 1, 2]
        assert processes.gather({"a": 1.0}) == [{"a": 1.0}]
        processes.wait()
        processes.leave()
        assert is_first_to_complain({})

    @pytest.mark.parametrize(("rank", "came"), [(0, "1 process came"), (1, "nobody answered there")])
    def test_a_process_whose_others_never_come_says_so_at_once_and_gives_up(self, monkeypatch, rank, came):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        left_over = {
            "RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {name: str(value) for name, value in left_over.items()}
        for name, value in environment.items():  # torch reads them itself
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(join_module, "MEETING", timedelta(seconds=1))
        told, handler = [], signal.getsignal(signal.SIGINT)
        with pytest.raises(WorkerLostError) as refusal:
            join_processes("cpu", environment, told.append)
        waiting = f"this is process {rank} of 2 of a launcher, and waits for the others at 127.0.0.1:{port}"
        assert told == [f"{waiting}; if no launcher started it, stop it and unset {' '.join(left_over)}"]
        message = str(refusal.value)
        assert message.startswith(f"{waiting}, but within 0 minutes {came}; start all of them")
        assert message.endswith(f"unset {' '.join(left_over)}")
        assert "\n" not in message
        assert signal.getsignal(signal.SIGINT) == handler

    def test_under_torchrun_a_short_wait_is_not_told(self):
        told = []
        with join_module._announcing({**LAUNCHED, "TORCHELASTIC_RUN_ID": "none"}, told.append):
            pass
        assert told == []

    def test_idle_processes_are_warned_about(self):
        assert not list(check_shares(Processes(0, 2), 2, {}))
        [event] = check_shares(Processes(0, 4), 1, {})
        assert "4 processes share 1 shard an iteration, so that 3 wait" in event.message
        assert "--set sample.shards=4" in event.message

    def test_accelerate_starts_one_process_on_a_cpu(self):
        [event] = check_shares(Processes(), 1, {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"})
        assert "torchrun" in event.message
        assert not list(check_shares(Processes(), 1, {"ACCELERATE_USE_CPU": "True"}))  # one was asked for

    def test_accelerates_own_sharding_would_shard_nothing(self):
        with pytest.raises(ConfigError, match=r"leave --use_fsdp out .* and use --shard-weights"):
            join_processes("cpu", {**LAUNCHED, "ACCELERATE_USE_FSDP": "true"})
        assert join_processes("cpu", {"ACCELERATE_USE_FSDP": "false"}) == Processes()

    def test_gpus_must_be_as_many_as_processes(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(ConfigError, match="process 2 on a machine with 1 GPU;"):
            join_processes("auto", LAUNCHED)
        with pytest.raises(ConfigError, match="--device cuda:0: is one GPU for 4 processes"):
            join_processes("cuda:0", LAUNCHED)
