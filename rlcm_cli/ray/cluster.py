"""A Ray cluster: reaching it, what each phase asks of its nodes, and waiting for tasks."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rlcm_cli.config import RaySettings, TaskResources
from rlcm_cli.errors import ConfigError, RlcmError, WorkerLostError
from rlcm_cli.wording import one_line

Role = Literal["sampler", "scorer", "trainer"]
ROLES: tuple[Role, ...] = ("sampler", "scorer", "trainer")

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster of our own: what tasks exchange is a few hundred bytes, and 75 MiB is the least that Ray takes."""
WORKER_ENVIRONMENT = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Tasks find their GPU by its number, see `ray.tasks`."""
CONNECT_SECONDS = 10
LOOK_SECONDS = 2.0
"""How often the nodes are looked at while no task ends."""


@dataclass(frozen=True)
class Demand:
    """What a task of a phase needs of a node."""

    cpus: int
    gpus: float
    memory: float
    """Bytes."""

    def options(self) -> dict[str, Any]:
        """Return the options of a Ray task; None means that the amount is not reserved."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory or None}

    def fits(self, node: Mapping[str, float]) -> bool:
        """Return whether a node with these resources in all can ever run the task."""
        return (
            self.cpus <= node.get("CPU", 0)
            and self.gpus <= node.get("GPU", 0)
            and self.memory <= node.get("memory", 0)
        )

    def __str__(self) -> str:
        return describe_resources(self.cpus, self.gpus, self.memory)


def describe_resources(cpus: float, gpus: float, memory: float) -> str:
    """Return resources as text; those of which there are none are left out, but for cores."""
    parts = [f"{cpus:g} CPU{'s' * (cpus != 1)}"]
    if gpus:
        parts.append(f"{gpus:g} GPU{'s' * (gpus != 1)}")
    if memory:
        parts.append(f"{memory / 1e9:.3g} GB")
    return " and ".join(parts)


def resolve_demand(
    asked: TaskResources, nodes: Sequence[Mapping[str, float]], *, device: str, threads: int, runs_network: bool
) -> Demand:
    """Fill in what the configuration leaves open.

    `nodes`: the resources of each node; `device`: the configuration's; `threads`: of this process.
    """
    there = any(node.get("GPU", 0) for node in nodes)
    wanted = runs_network and (device.startswith("cuda") or (device == "auto" and there))
    gpus = asked.gpus if asked.gpus is not None else float(wanted)
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    cpus = asked.cpus or (1 if gpus else max(1, min(threads, largest)))
    return Demand(cpus, gpus, (asked.memory_gb or 0) * 1e9)


def choose_device(asked: str, demand: Demand) -> str:
    """Return the device of a task: Ray's reservation decides between CPU and CUDA, any other stays as configured."""
    if asked == "auto" or asked.startswith("cuda"):
        return "cuda" if demand.gpus else "cpu"
    return asked


@dataclass(frozen=True)
class Task:
    """A task that was handed to the cluster."""

    role: Role
    number: int
    """The shard's, or that of the iteration or checkpoint."""
    reply: Any
    """Ray's reference of what it returns, which a task that must wait for it takes as an argument."""


class Cluster:
    """A cluster that is connected."""

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self.demands: dict[Role, Demand] = {}
        """Of each role; to be filled before its first task is submitted."""

    def nodes(self) -> list[dict[str, float]]:
        """Return the resources of each living node."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def submit(self, role: Role, number: int, function: Callable[..., Any], *arguments: Any) -> Task:
        """Hand a task over. Where a node is lost with it, it is done again elsewhere."""
        remote = _remote(function).options(
            **self.demands[role].options(),
            max_retries=self._settings.max_retries,
            name=f"rlcm-{function.__name__}-{number}",
        )
        return Task(role, number, remote.remote(*arguments))

    def finish(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Return tasks as they end, each with what it returned.

        Raises the `RlcmError` of a task that failed for one, `WorkerLostError` for a task that was lost more often
        than it may be done again, and `ConfigError` where no node has what a task that waits asks for.
        """
        import ray

        waiting = {task.reply: task for task in tasks}
        satisfied = time.monotonic()
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=LOOK_SECONDS)
            for reply in ready:
                task = waiting.pop(reply)
                yield task, _receive(task)
            lacking = None if ready else self._find_lacking({task.role for task in waiting.values()})
            if lacking is None:
                satisfied = time.monotonic()
            elif time.monotonic() - satisfied > self._settings.wait_seconds:
                raise ConfigError(self._describe_lack(lacking))

    def _find_lacking(self, roles: Iterable[Role]) -> Role | None:
        nodes = self.nodes()
        return next((role for role in roles if not any(self.demands[role].fits(node) for node in nodes)), None)

    def _describe_lack(self, role: Role) -> str:
        there = "; ".join(
            sorted(
                {
                    describe_resources(node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0))
                    for node in self.nodes()
                }
            )
        )
        return (
            f"no node of the Ray cluster has the {self.demands[role]} that a {role} asks for (they have: {there}), "
            f"and none came in {self._settings.wait_seconds:g} s; lower --set ray.{role}.cpus, .gpus or .memory_gb, "
            "or add a node"
        )


@contextmanager
def join_cluster(settings: RaySettings) -> Iterator[Cluster]:
    """Connect to the cluster of the configuration, or start one on this machine, for a `with` block.

    Raises `ConfigError` where Ray is not installed or the cluster cannot be reached.
    """
    ray = _import_ray(alone=settings.address is None)
    try:
        if settings.address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                log_to_driver=False,
                logging_level="ERROR",
            )
        else:
            if settings.address != "auto":
                _require_answer(settings.address)
            ray.init(
                address=settings.address,
                runtime_env={"env_vars": WORKER_ENVIRONMENT},
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the Ray cluster {settings.address or 'of this machine'} cannot be used: {reason}; start it with `ray "
            "start` on this machine too, and name it as --ray-address HOST:PORT"
        ) from None
    try:
        yield Cluster(settings)
    finally:
        ray.shutdown()


def _import_ray(*, alone: bool) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray would ask for it again as each task without a GPU starts.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if alone:  # for nobody else to reach, whatever network this machine is in
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--executor ray needs the package {error.name}, which is not installed; pip install 'rlcm[ray]'"
        ) from None
    return ray


def _require_answer(address: str) -> None:
    """Raise `ConfigError` unless a cluster answers: Ray itself would try for an hour."""
    import ray

    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise ConfigError(f"--ray-address {address}: write HOST:PORT, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        ray._raylet.GcsClient(address=address)  # what `ray status` asks
    except (OSError, ray.exceptions.RpcError) as error:
        raise ConfigError(
            f"--ray-address {address}: no Ray cluster answers there ({error}); `ray status` on its head node says "
            "whether it runs"
        ) from None


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    """Make a remote function, whose worker processes are kept for later tasks, those with a GPU too."""
    import ray

    return ray.remote(max_calls=0)(function)


def _receive(task: Task) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(task.reply)
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError):  # that of a task it waited for
            cause = cause.cause
        if isinstance(cause, RlcmError):
            raise cause from None
        raise
    except RayError as error:
        reason = one_line(error)[:300]
        raise WorkerLostError(
            f"task {task.number} of the {task.role} was lost with its process or node, again and again ({reason}); "
            "give it more memory, or raise --set ray.max_retries; nothing is lost; rerun the same command to resume"
        ) from None
