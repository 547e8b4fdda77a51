"""The loop with its phases as tasks of a Ray cluster, which schedules them and does lost ones again.

The phases are those of `loop`, and so is what they make: a separate worker draws and scores each shard, and at equal
numbers of threads the bytes are the same. The machine that starts the loop loads no model: it reads the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from rlcm_cli import __version__
from rlcm_cli.errors import MissingFileError
from rlcm_cli.events import Advanced, Event, PhaseStarted
from rlcm_cli.phases.iterations import run_iterations
from rlcm_cli.phases.loop import StartedLoop
from rlcm_cli.ray import tasks as ray_tasks
from rlcm_cli.ray.cluster import ROLES, Cluster, Role, Task, choose_device, join_cluster, resolve_demand
from rlcm_cli.ray.tasks import Errand
from rlcm_cli.runs.run import Run
from rlcm_cli.store.checkpoint import latest_checkpoint
from rlcm_cli.store.manifest import split_groups


def start_on_ray(run: Run, *, cached: bool = True, allow_changed: bool = False) -> StartedLoop:
    """Return the loop of `loop_on_ray`, ready to run."""
    device = f"of the Ray cluster {run.config.ray.address or 'on this machine'}"
    return StartedLoop(run, device, loop_on_ray(run, cached=cached, allow_changed=allow_changed))


def loop_on_ray(run: Run, *, cached: bool = True, allow_changed: bool = False) -> Iterator[Event]:
    """Run the iterations that are missing as `loop` does, by the tasks of a cluster.

    `run` is one of `check_run`, whose directory all nodes see by the same path; it is made by the first task where
    there is none. `cached`: the nodes look scores up and keep them, each in its own cache. `allow_changed`: as of
    `load_scorers`. Raises what `loop` raises,
    and what `join_cluster` and `Cluster.finish` do.
    """
    run.config.require_actions()
    with join_cluster(run.config.ray) as cluster:
        crew = hire(cluster, run, cached=cached, allow_changed=allow_changed)
        crew.start()
        yield from run_iterations(run, crew.iterate, crew.evaluate)


@dataclass(frozen=True)
class Crew:
    """The tasks of a run, by their phase."""

    cluster: Cluster
    run: Run
    errands: dict[Role, Errand]

    def start(self) -> None:
        """Make sure that each role has a node with the same toolkit, then that the run is there."""
        greetings = [self.cluster.submit(role, 0, ray_tasks.greet, __version__) for role in ROLES]
        for _ in self.cluster.finish(greetings):
            pass
        self._train(0, ray_tasks.start)
        if not self.run.layout.config.exists():
            raise MissingFileError(
                f"{self.run.layout.root}: was made by another node and is not there on this machine; put the run on a "
                "file system that all nodes see by the same path"
            )

    def iterate(self) -> Iterator[Event]:
        """Sample, score and train once; a shard is scored once it is drawn, while others are being drawn.

        With `sample.staleness` the next iteration is sampled and scored while this one trains; where it has begun
        with that, only what is missing is done.
        """
        settings, iteration = self.run.config.sample, latest_checkpoint(self.run.layout)
        shards = split_groups(settings.samples, settings.group_size, settings.shards)
        yield PhaseStarted("sample", iteration, settings.samples, "images")
        to_draw, scored_early = len(shards), 0
        for task, _ in self.cluster.finish(self._submit_shards(iteration)):
            first, stop = shards[task.number]
            if task.role == "scorer" and to_draw:
                scored_early += stop - first
                continue
            yield Advanced(stop - first)
            if task.role == "sampler":
                to_draw -= 1
                if not to_draw:
                    yield PhaseStarted("score", iteration, settings.samples, "images")
                    yield Advanced(scored_early)
        yield PhaseStarted("train", iteration, 1, "iterations")
        # The trainer first: where it shares a GPU with samplers, they are what can wait.
        training = self._submit_training(iteration, ray_tasks.train_iteration, iteration)
        is_last = iteration + 1 >= self.run.config.runtime.iterations
        ahead = self._submit_shards(iteration + 1) if settings.staleness and not is_last else []
        for task, events in self.cluster.finish([training, *ahead]):
            if task is training:
                yield from events

    def evaluate(self, checkpoint: int) -> Iterator[Event]:
        """Draw and score the fixed images with a checkpoint."""
        yield PhaseStarted("evaluate", checkpoint, 1, "checkpoints")
        yield from self._train(checkpoint, ray_tasks.evaluate_checkpoint, checkpoint)

    def _submit_shards(self, iteration: int) -> list[Task]:
        """Have an iteration drawn and scored, as far as it is not."""
        submit, errands = self.cluster.submit, self.errands
        sampled = [
            submit("sampler", number, ray_tasks.sample_shard, errands["sampler"], iteration, number)
            for number in range(self.run.config.sample.shards)
        ]
        scored = [
            submit(
                "scorer", task.number, ray_tasks.score_one_shard, errands["scorer"], iteration, task.number, task.reply
            )
            for task in sampled
        ]
        return [*sampled, *scored]

    def _submit_training(self, number: int, function: Callable[..., Any], *arguments: Any) -> Task:
        return self.cluster.submit("trainer", number, function, self.errands["trainer"], *arguments)

    def _train(self, number: int, function: Callable[..., Any], *arguments: Any) -> list[Event]:
        """Have the trainer do a task; yield the events that it returns."""
        ((_, events),) = self.cluster.finish([self._submit_training(number, function, *arguments)])
        return events or []


def hire(cluster: Cluster, run: Run, *, cached: bool, allow_changed: bool = False) -> Crew:
    """Settle what each role's tasks ask of a node, and tell them what they must know."""
    config, device, nodes = run.config, run.config.runtime.device, cluster.nodes()
    neural = any(spec.entry.neural for spec in run.reward_specs().values())
    errands: dict[Role, Errand] = {}
    for role in ROLES:
        demand = resolve_demand(
            getattr(config.ray, role),
            nodes,
            device=device,
            threads=torch.get_num_threads(),
            runs_network=neural if role == "scorer" else True,
        )
        cluster.demands[role] = demand
        errands[role] = Errand(
            run=str(run.layout.root.resolve()),
            config=config.to_json(),
            device=choose_device(device, demand),
            threads=demand.cpus,
            cached=cached,
            allow_changed=allow_changed,
        )
    return Crew(cluster, run, errands)
