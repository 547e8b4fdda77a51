"""The loop on a cluster of several nodes, real raylets on this machine: the same bytes, also when a node is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from phase_runs import fingerprint, finish, make_config, make_loop

from rlcm_cli.config import RaySettings
from rlcm_cli.errors import ConfigError, RewardError, WorkerLostError
from rlcm_cli.events import Advanced, Evaluated, IterationTrained, PhaseStarted
from rlcm_cli.ray import tasks as ray_tasks
from rlcm_cli.ray.cluster import Demand, join_cluster
from rlcm_cli.ray.loop import loop_on_ray
from rlcm_cli.runs.run import check_run
from rlcm_cli.store.manifest import read_manifest

pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def nodes():
    """A head that takes no tasks, for its raylet is ours, and two nodes of one core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_health_check_period_ms", "500")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


def config_of(model, nodes, **sections):
    ray = {"address": nodes.address, "max_retries": 3, "wait_seconds": 60.0, **sections.pop("ray", {})}
    return make_config(model, sample={"shards": 4, **sections.pop("sample", {})}, ray=ray, **sections)


def test_the_loop_on_several_nodes_gives_what_the_loop_gives(nodes, tiny_lcm, tmp_path):
    config = config_of(tiny_lcm, nodes)
    events = finish(loop_on_ray(check_run(tmp_path / "ray", config)))
    assert fingerprint(tmp_path / "ray") == fingerprint(make_loop(tmp_path / "plain", config).layout.root)
    started = [(event.phase, event.iteration) for event in events if isinstance(event, PhaseStarted)]
    iteration = ["sample", "score", "train"]
    assert started == [
        ("evaluate", 0),
        *((phase, 0) for phase in iteration),
        *((phase, 1) for phase in iteration),
        ("evaluate", 2),
    ]
    assert sum(event.count for event in events if isinstance(event, Advanced)) == 2 * (8 + 8)
    assert [event.number for event in events if isinstance(event, IterationTrained)] == [1, 2]
    assert [event.checkpoint for event in events if isinstance(event, Evaluated)] == [0, 2]


def test_an_iteration_drawn_while_the_one_before_trains_is_what_the_loop_draws(nodes, tiny_lcm, tmp_path):
    config = config_of(tiny_lcm, nodes, sample={"staleness": 1}, runtime={"iterations": 3})
    run = check_run(tmp_path / "ray", config)
    ahead = []
    for event in loop_on_ray(run):
        if isinstance(event, PhaseStarted) and event.phase == "sample":
            ahead.append(run.layout.manifest(event.iteration).exists())
    assert ahead == [False, True, True]
    assert fingerprint(tmp_path / "ray") == fingerprint(make_loop(tmp_path / "plain", config).layout.root)
    assert [read_manifest(run.layout.manifest(number)).policy.checkpoint for number in range(3)] == [0, 0, 1]


def test_a_run_whose_node_is_killed_in_mid_iteration_ends_the_same(nodes, tiny_lcm, tmp_path):
    config = config_of(tiny_lcm, nodes)
    killed = []
    with killing_node_of("sample_shard", killed):
        finish(loop_on_ray(check_run(tmp_path / "ray", config)))
    assert len(killed) == 1
    nodes.add_node(**NODE)
    assert fingerprint(tmp_path / "ray") == fingerprint(make_loop(tmp_path / "plain", config).layout.root)


@contextlib.contextmanager
def killing_node_of(task, killed):
    """Kill the raylet, and with it the node, of the first process that is seen doing a task."""
    over = threading.Event()

    def watch():
        while not over.is_set() and not killed:
            for line in subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True).stdout.splitlines():
                parent, title = line.split(maxsplit=1)
                if title.startswith(f"ray::rlcm-{task}-") and not killed:
                    os.kill(int(parent), signal.SIGKILL)
                    killed.append(parent)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_resources_that_no_node_has_are_named_before_anything_is_made(nodes, tiny_lcm, tmp_path):
    config = config_of(tiny_lcm, nodes, ray={"sampler": {"cpus": 64, "memory_gb": 2.0}, "wait_seconds": 1.0})
    with pytest.raises(ConfigError, match=r"^no node .* the 64 CPUs and 2 GB that a sampler asks .*ray.sampler.cpus"):
        finish(loop_on_ray(check_run(tmp_path / "run", config)))
    assert not (tmp_path / "run").exists()


def test_an_error_of_a_task_is_the_same_one_line(nodes, tiny_lcm, tmp_path):
    reward = tmp_path / "broken.py"
    reward.write_text(
        "import torch\ndef broken(images, prompts, metadata):\n    return torch.full((len(images),), torch.nan)\n"
    )
    config = config_of(tiny_lcm, nodes, rewards={f"{reward}:broken": 1.0})
    messages = []
    for make in (
        lambda: make_loop(tmp_path / "plain", config),
        lambda: finish(loop_on_ray(check_run(tmp_path / "ray", config))),
    ):
        with pytest.raises(RewardError) as caught:
            make()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


def ask(cluster, function, *arguments):
    cluster.demands["scorer"] = Demand(1, 0, 0)
    ((_, answer),) = cluster.finish([cluster.submit("scorer", 7, function, *arguments)])
    return answer


def test_a_bug_keeps_its_traceback_and_a_lost_task_says_that_nothing_is_lost(nodes):
    from ray.exceptions import RayTaskError

    with join_cluster(RaySettings(address=nodes.address, max_retries=0)) as cluster:
        assert ask(cluster, json.loads, "[1]") == [1]
        with pytest.raises(RayTaskError, match=r"(?s)ray::rlcm-loads-7.*raw_decode.*JSONDecodeError"):
            ask(cluster, json.loads, "[")
        with pytest.raises(ConfigError, match=r"^node .* install the same version on all$"):
            ask(cluster, ray_tasks.greet, "0.0.0")
        with pytest.raises(
            WorkerLostError,
            match=r"^task 7 of the scorer was lost .* nothing is lost; rerun the same command to resume$",
        ):
            ask(cluster, subprocess.call, ["sh", "-c", "kill -9 $PPID"])


def test_the_command_starts_a_cluster_of_its_own_for_this_machine(tiny_lcm, tmp_path):
    (tmp_path / "run.toml").write_text(
        f'task = "compression"\n[model]\nname = "{tiny_lcm}"\n[sample]\nsamples = 8\nbatch_size = 4\nshards = 2\n'
        "[train]\nminibatch_size = 8\nmin_count = 2\nbuffer_size = 4\n[evaluate]\nprompts = 3\nimages_per_prompt = 1\n"
    )
    command = ["loop", "--config", "run.toml", "--run", "run", "--iterations", "1", "--executor", "ray", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rlcm_cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["checkpoint"] == 1
    assert "warning" not in done.stderr.lower()
    assert (tmp_path / "run" / "evaluations" / "000001").is_dir()
