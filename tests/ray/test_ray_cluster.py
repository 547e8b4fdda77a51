"""What each phase asks of a cluster, and the lines for a cluster that cannot be had."""

import socket
import sys
import time

import pytest

from rlcm_cli.config import RaySettings, TaskResources, parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.ray.cluster import Demand, choose_device, join_cluster, resolve_demand

CPU_NODES = [{"CPU": 0.0, "memory": 8e9}, {"CPU": 4.0, "memory": 8e9}]
GPU_NODES = [{"CPU": 16.0, "memory": 64e9}, {"CPU": 8.0, "GPU": 2.0, "memory": 32e9}]


def demand(nodes, device="auto", threads=6, runs_network=True, **asked):
    return resolve_demand(TaskResources(**asked), nodes, device=device, threads=threads, runs_network=runs_network)


def test_without_a_gpu_a_task_takes_the_threads_that_this_machine_would_use_but_not_more_than_a_node_has():
    assert demand(CPU_NODES) == Demand(cpus=4, gpus=0, memory=0)
    assert demand(CPU_NODES, threads=2) == Demand(cpus=2, gpus=0, memory=0)


def test_with_gpus_whatever_runs_a_network_takes_one_unless_the_device_forbids_it():
    assert demand(GPU_NODES) == Demand(cpus=1, gpus=1, memory=0)
    assert demand(GPU_NODES, device="cpu") == Demand(cpus=6, gpus=0, memory=0)
    assert demand(GPU_NODES, runs_network=False) == Demand(cpus=6, gpus=0, memory=0)
    assert demand(CPU_NODES, device="cuda") == Demand(cpus=1, gpus=1, memory=0)  # which no node has


def test_what_is_asked_for_stands():
    assert demand(GPU_NODES, cpus=3, gpus=0.5, memory_gb=2.5) == Demand(cpus=3, gpus=0.5, memory=2.5e9)
    assert demand(GPU_NODES, gpus=0.0) == Demand(cpus=6, gpus=0, memory=0)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Demand(8, 2, 32e9), True),
        (Demand(16, 0, 64e9), True),
        (Demand(9, 1, 0), False),
        (Demand(1, 3, 0), False),
        (Demand(1, 1, 33e9), False),
    ],
)
def test_a_task_needs_one_node_that_has_all_it_asks_for(wanted, fits):
    assert any(wanted.fits(node) for node in GPU_NODES) is fits


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [("auto", 1, "cuda"), ("auto", 0, "cpu"), ("cuda:1", 0.5, "cuda"), ("cuda", 0, "cpu"), ("mps", 0, "mps")],
)
def test_the_reservation_decides_between_cpu_and_cuda(asked, gpus, device):
    assert choose_device(asked, Demand(1, gpus, 0)) == device


def test_the_cluster_may_change_when_a_run_is_continued(tiny_config):
    values = tiny_config.model_dump(mode="json")
    values["ray"] = {"address": "10.0.0.1:6379", "sampler": {"gpus": 1}, "max_retries": 0}
    assert parse_config(values).identity() == tiny_config.identity()


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^--executor ray needs the package ray, .*pip install 'rlcm\[ray\]'$"):
        join_cluster(RaySettings()).__enter__()


def test_a_cluster_that_does_not_answer_is_named_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ConfigError, match=rf"^--ray-address {address}: no Ray cluster answers there .*`ray status`"):
        join_cluster(RaySettings(address=address)).__enter__()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", "head:port"])
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ConfigError, match="write HOST:PORT, or auto"):
        join_cluster(RaySettings(address=address)).__enter__()
