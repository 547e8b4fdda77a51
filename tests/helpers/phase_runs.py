"""Runs of the tiny pipeline: made once where a test only looks or copies, and helpers to drive the phases."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_values

from rlcm_cli.config import Config, parse_config
from rlcm_cli.core.digests import canonical_json, sha256
from rlcm_cli.events import Event, PhaseSkipped
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import Scorer, load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.worker import Worker
from rlcm_cli.rewards import Reward
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import Run, create_run, open_run
from rlcm_cli.store.checkpoint import digest_safetensors
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.store.metrics import IterationMetrics
from rlcm_cli.store.score_cache import ScoreCache
from rlcm_cli.store.shards import is_published

TIMES = ("sample_seconds", "score_seconds", "train_seconds", "cpu_seconds", "finished_at", "digest")
NOT_OF_THE_RUN = ("quarantine", "timings")


def make_config(model: Path, **sections: Any) -> Config:
    return parse_config(tiny_values(model, **sections))


@functools.cache
def shared_model(folder: Path, rank: int = 2, sampler: str = "lcm") -> LatentModel:
    """Give a model that all tests share: each phase puts the weights of its checkpoint into it."""
    return load_policy_model(make_config(folder, lora={"rank": rank}, sampler={"kind": sampler}))


def finish(events: Iterable[Event]) -> list[Event]:
    """Run a phase to its end."""
    return list(events)


def kinds(events: Iterable[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def did_nothing(events: list[Event]) -> bool:
    return bool(events) and all(isinstance(event, PhaseSkipped) for event in events)


def make_loop(root: Path, config: Config) -> Run:
    """Make a run by the loop."""
    run = create_run(root, config)
    finish(loop(run, shared_model(Path(config.model.name), config.lora.rank, config.sampler.kind), load_scorers(run)))
    return run


def make_by_hand(root: Path, config: Config, workers: tuple[Worker, ...] = (Worker(),), *, fresh: bool = True) -> Run:
    """Make a run as commands do: each phase opens the run again and, where `fresh`, loads its own model."""
    create_run(root, config)

    def model() -> LatentModel:
        return (
            load_policy_model(config)
            if fresh
            else shared_model(Path(config.model.name), config.lora.rank, config.sampler.kind)
        )

    for number in range(config.runtime.iterations):
        for worker in workers:
            finish(sample(open_run(root), model(), worker))
        if number == 0:
            finish(evaluate(open_run(root), model(), load_scorers(open_run(root)), 0))
        for worker in workers:
            run = open_run(root)
            finish(score(run, load_scorers(run), worker))
        finish(train(open_run(root), model()))
    run = open_run(root)
    finish(evaluate(run, model(), load_scorers(run), config.runtime.iterations))
    return run


def prepare(root: Path, config: Config, *, upto: str = "score") -> tuple[Run, LatentModel]:
    """Make a run whose next phase is score or train."""
    run = create_run(root, config)
    model = shared_model(Path(config.model.name), config.lora.rank, config.sampler.kind)
    finish(sample(run, model))
    if upto == "score":
        finish(score(run, load_scorers(run)))
    return run, model


def scorers_of(
    run: Run,
    functions: Mapping[str, Callable[..., torch.Tensor]],
    cache: ScoreCache | None = None,
    **changes: Any,
) -> dict[str, Scorer]:
    """Give the run's rewards functions of a test; `changes` are of the `Reward`."""
    return {
        name: Scorer(run.reward_specs()[name], Reward(name, function, **changes), run.scored_tasks(name), cache)
        for name, function in functions.items()
    }


def one_iteration(root: Path, config: Config) -> IterationMetrics:
    """Sample, score and train once; return the metrics."""
    run, model = prepare(root, config)
    return finish(train(run, model))[-1].metrics


def copy_run(source: Path, target: Path) -> Run:
    return open_run(Path(shutil.copytree(source, target)))


def fingerprint(root: Path) -> dict[str, str]:
    """Digest each file of a run but for what may differ: the order of a LoRA's metadata keys, and times.

    What is in quarantine, says how long a phase took, or was left by a killed process, is not of the run.
    """
    return {
        str(file.relative_to(root)): _digest(file)
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part in NOT_OF_THE_RUN or part.endswith(".tmp") for part in file.parts)
    }


def _digest(file: Path) -> str:
    if file.name == "pytorch_lora_weights.safetensors":
        return digest_safetensors(file)
    if file.parent.name == "metrics" or file.name == "metrics.jsonl":
        return canonical_json([without_times(json.loads(line)) for line in file.read_text().splitlines()])
    return sha256(file.read_bytes())


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key not in TIMES}


def raw_bytes(root: Path) -> dict[str, bytes]:
    """Give the files of a folder with their bytes, but for those that say how long a phase took."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and "timings" not in file.parts
    }


def published_shards(root: Path) -> dict[Path, tuple[int, int]]:
    """Give identity and time of each published record: another pair means that it was written again."""
    return {
        record: (record.stat().st_ino, record.stat().st_mtime_ns)
        for record in root.glob("rollouts/*/**/shard-*.safetensors")
        if is_published(record)
    }


def remove_record(path: Path) -> None:
    path.unlink()
    receipt_path(path).unlink()


def adapter(model: LatentModel) -> dict[str, torch.Tensor]:
    """Copy the adapter's weights."""
    return {name: parameter.detach().clone() for name, parameter in lora_parameters(model).items()}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
