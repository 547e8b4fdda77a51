"""Every path of a run directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

FORMAT_VERSION = 1
PLANNED_FILE = "loop.json"

AnyPath = TypeVar("AnyPath", bound=PurePath)


@dataclass(frozen=True)
class RunLayout:
    """Names the files of one run; creates none."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.json"

    @property
    def inputs(self) -> Path:
        """Prompts that the run began with, and digests of its real images."""
        return self.root / "inputs.json"

    @property
    def metrics_jsonl(self) -> Path:
        """One line an iteration, derived from the metrics files."""
        return self.root / "metrics.jsonl"

    @property
    def quarantine(self) -> Path:
        """Where damaged files go."""
        return self.root / "quarantine"

    def rollout(self, iteration: int) -> Path:
        """Folder of an iteration's samples."""
        return self.root / "rollouts" / f"{iteration:06d}"

    def manifest(self, iteration: int) -> Path:
        """Plan of an iteration."""
        return self.rollout(iteration) / "manifest.json"

    def shard(self, iteration: int, shard: int, shards: int) -> Path:
        """Trajectories of one unit of work."""
        return self.rollout(iteration) / shard_name(shard, shards)

    def reward_shard(self, iteration: int, reward: str, shard: int, shards: int) -> Path:
        """Rewards of one unit of work; `reward` is the reward's `<slug>-<digest>`."""
        return self.rollout(iteration) / "rewards" / reward / shard_name(shard, shards)

    def checkpoint(self, number: int) -> Path:
        """Folder of the policy after `number` iterations."""
        return self.root / "checkpoints" / f"{number:06d}"

    def evaluation(self, checkpoint: int) -> Path:
        """The fixed images drawn with a checkpoint."""
        return self.root / "evaluations" / f"{checkpoint:06d}" / "evaluation.safetensors"

    def rescored_evaluation(self, checkpoint: int, number: int) -> Path:
        """Rewards of the fixed images by a later version of a reward; `number` counts from 1."""
        return self.evaluation(checkpoint).with_name(f"rescored-{number:05d}.safetensors")

    def metrics(self, number: int) -> Path:
        """What the update that made checkpoint `number` measured."""
        return self.root / "metrics" / f"{number:06d}.json"

    def timing(self, iteration: int, phase: str, shard: int) -> Path:
        """How long a phase took for one unit of work."""
        return self.root / "timings" / f"{iteration:06d}" / f"{phase}-{shard:05d}.json"

    def planned(self, iteration: int) -> Path:
        """How many iterations the loop wanted that went on with an iteration."""
        return self.root / "timings" / f"{iteration:06d}" / PLANNED_FILE

    @property
    def votes(self) -> Path:
        """What people said of pairs of images."""
        return self.root / "votes"

    def vote(self, voter: str, number: int) -> Path:
        """One vote; `number` counts those of the voter from 0."""
        return self.votes / voter / f"{number:06d}.json"

    @property
    def pruned(self) -> Path:
        """What was removed on purpose."""
        return self.root / "pruned.json"

    @property
    def logs(self) -> Path:
        """What experiment trackers write."""
        return self.root / "logs"

    def tracked(self, tracker: str) -> Path:
        """How much of the run an experiment tracker was given."""
        return self.logs / f"{tracker}.json"

    def measured(self) -> list[int]:
        """Checkpoints whose update left metrics, ascending."""
        return _numbered(self.root / "metrics", ".json")

    def iterations(self) -> list[int]:
        """Iterations that have a plan, ascending."""
        return [number for number in _numbered(self.root / "rollouts") if self.manifest(number).exists()]

    def checkpoints(self) -> list[int]:
        """Checkpoints that are there, ascending. A checkpoint folder is published whole."""
        return _numbered(self.root / "checkpoints")

    def evaluations(self) -> list[int]:
        """Checkpoints that were evaluated, ascending."""
        return [
            number for number in _numbered(self.root / "evaluations") if receipt_path(self.evaluation(number)).exists()
        ]


def shard_name(shard: int, shards: int) -> str:
    """File name of a shard, counted from 0."""
    return f"shard-{shard:05d}-of-{shards:05d}.safetensors"


def receipt_path(path: Path) -> Path:
    """Receipt of a published record."""
    return path.with_suffix(".json")


def with_receipt(path: AnyPath) -> tuple[AnyPath, ...]:
    """Return the receipt of a record and the record, in this order; any other file or folder has no receipt."""
    return (path.with_suffix(".json"), path) if path.suffix == ".safetensors" else (path,)


def _numbered(folder: Path, suffix: str = "") -> list[int]:
    """Numbers of the entries that are named by one, with at least six digits. Others are not of the format."""
    if not folder.is_dir():
        return []
    names = (entry.name.removesuffix(suffix) for entry in folder.iterdir() if entry.name.endswith(suffix))
    return sorted(int(name) for name in names if re.fullmatch(r"\d{6}|[1-9]\d{6,8}", name, re.ASCII))
