"""The plan of an iteration: which samples, in which shards and batches, drawn by which policy."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import pairwise, repeat
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlcm_cli.core.digests import canonical_json, sha256
from rlcm_cli.errors import ForeignFileError, MissingFileError
from rlcm_cli.store.atomic import publish_bytes
from rlcm_cli.store.identity import check_owner
from rlcm_cli.store.layout import FORMAT_VERSION, RunLayout
from rlcm_cli.store.reading import REMEDY, Record, read_object

ROUNDING = 1e-3
"""Of a schedule made from a float32 ᾱ: a root of a difference near 0 keeps half of its digits."""
TIME_ROUNDING = 1e-6
"""Of float32 model times; far below the distance of two whole ones."""
Count = Annotated[int, Field(ge=0, lt=2**40)]
Positive = Annotated[int, Field(ge=1, lt=2**40)]
Timestep = Annotated[int, Field(ge=-(2**40), lt=2**40)] | Annotated[float, Field(ge=-(2**40), lt=2**40)]
"""Whole where a sampler's times are, so that they are read as they were written."""


class PolicyIdentity(Record):
    """The policy that drew the samples."""

    kind: str
    """Of the sampler."""
    checkpoint: Count
    digest: str
    """Of the LoRA's tensors and metadata."""


class ScheduleRecord(Record):
    """The sampler's H model calls, each with what is needed to score an action: `core.schedule.Schedule`.

    The initial latents are initial_scale · standard normal noise, the next ones of each call
    ~ N(latents_coef · latents + output_coef · model output, std²); a call with a std of 0 is not an action.
    """

    timesteps: tuple[Timestep, ...]
    next_timesteps: tuple[Timestep, ...]
    latents_coef: tuple[float, ...]
    output_coef: tuple[float, ...]
    std: tuple[Annotated[float, Field(ge=0)], ...]
    guidance_scale: float
    initial_scale: Annotated[float, Field(gt=0)]

    def agrees_with(self, other: ScheduleRecord) -> bool:
        """Return whether two records describe the same sampler, up to the rounding of float32 noise levels."""
        times, numbers = (self.timesteps, self.next_timesteps), (self.latents_coef, self.output_coef, self.std)
        other_times = other.timesteps, other.next_timesteps
        other_numbers = other.latents_coef, other.output_coef, other.std
        return (
            self.guidance_scale == other.guidance_scale
            and all(map(_agree, times, other_times, repeat(TIME_ROUNDING)))
            and all(map(_agree, numbers, other_numbers, repeat(ROUNDING)))
            and _agree([self.initial_scale], [other.initial_scale], ROUNDING)
        )

    @property
    def action_calls(self) -> list[int]:
        """The model calls that draw noise, which are the actions."""
        return [call for call, std in enumerate(self.std) if std > 0]

    @property
    def transitions(self) -> list[list[float]]:
        """(timestep, next timestep) of each action."""
        return [[self.timesteps[call], self.next_timesteps[call]] for call in self.action_calls]

    @property
    def states(self) -> int:
        """S, the states of a trajectory that are stored: those around each action, and that of the last call."""
        actions = self.action_calls
        return len({*actions, *(call + 1 for call in actions), len(self.std) - 1})

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = (self.timesteps, self.next_timesteps, self.latents_coef, self.output_coef, self.std)
        if not self.std or len({len(column) for column in columns}) > 1:
            raise ValueError("its columns do not have the same length")
        return self


def _agree(own: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(own) == len(other) and all(
        math.isclose(*pair, rel_tol=tolerance, abs_tol=tolerance) for pair in zip(own, other, strict=True)
    )


class RolloutManifest(Record):
    """A rollout's plan; a pure function of the configuration, the iteration and the checkpoint."""

    format_version: int = FORMAT_VERSION
    run: str
    """Identity of the run that it is a plan of."""
    iteration: Count
    tasks: tuple[str, ...]
    run_seed: int
    model_digest: str
    dtype: str
    policy: PolicyIdentity
    schedule: ScheduleRecord
    reduction: Literal["mean", "sum"]
    prompts: tuple[str, ...]
    """One a group; group g is the samples g · group_size … (g + 1) · group_size − 1."""
    group_tasks: tuple[Count, ...]
    """Task of each group, an index into `tasks`."""
    group_size: Positive
    shards: tuple[tuple[Count, Count], ...]
    """[start, stop) of each shard, in samples."""
    batch_size: Positive
    """Samples of a model call; each shard is cut into batches from its start."""
    final_latents: bool
    """Whether the shards hold what was decoded."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.group_tasks) != len(self.prompts) or not {*self.group_tasks} <= {*range(len(self.tasks))}:
            raise ValueError("not every group has a prompt and a task")
        edges = [0, *(stop for _, stop in self.shards)]
        in_turn = all((start, stop) == pair for (start, stop), pair in zip(self.shards, pairwise(edges), strict=True))
        whole = all(edge % self.group_size == 0 for edge in edges) and edges == sorted(edges)
        if not (self.prompts and in_turn and whole and edges[-1] == len(self.prompts) * self.group_size):
            raise ValueError("its shards do not hold each group once")
        return self

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(self.model_dump(mode="json")).encode()

    @cached_property
    def digest(self) -> str:
        """The `plan` that binds shards and rewards to this manifest."""
        return sha256(self.encode())

    def prompt_of(self, sample: int) -> str:
        """Prompt of a sample."""
        return self.prompts[sample // self.group_size]

    def task_of(self, sample: int) -> int:
        """Task of a sample, an index into `tasks`."""
        return self.group_tasks[sample // self.group_size]

    def samples_of(self, tasks: Collection[str], shard: int | None = None) -> list[int]:
        """Samples of some of the tasks, of one shard or of all."""
        span = (0, self.shards[-1][1]) if shard is None else self.shards[shard]
        return [sample for sample in range(*span) if self.tasks[self.task_of(sample)] in tasks]


def split_groups(samples: int, group_size: int, shards: int) -> tuple[tuple[int, int], ...]:
    """Cut samples into shards of nearly equal size that hold whole groups: [start, stop) of each."""
    groups = samples // group_size
    edges = [groups * shard // shards * group_size for shard in range(shards + 1)]
    return tuple(pairwise(edges))


def split_shares(groups: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Deal groups to as many tasks at most: by their shares, as near as whole numbers are, but at least one each."""
    edges = [round(groups * sum(shares[:count]) / sum(shares)) for count in range(len(shares) + 1)]
    counts = [stop - start for start, stop in pairwise(edges)]
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return tuple(counts)


def publish_manifest(path: Path, manifest: RolloutManifest) -> RolloutManifest:
    """Publish a plan and return the one that is then there: this one, or another worker's of the same samples.

    ᾱ is a float32 product whose last bits depend on the processor, and so the schedule made from it. Workers on other
    processors therefore draw by the plan of whoever published first. Raises `ForeignFileError` where another plan is
    there.
    """
    if publish_bytes(path, manifest.encode()):
        return manifest
    published = read_manifest(path)
    if published.model_copy(update={"schedule": manifest.schedule}) != manifest or not published.schedule.agrees_with(
        manifest.schedule
    ):
        raise ForeignFileError(
            f"{path}: holds another plan than this run's configuration, model and checkpoint give; "
            + REMEDY.format(path=path.parent)
        )
    return published


def read_manifest(path: Path) -> RolloutManifest:
    """Read a plan from its place in a run.

    Raises `MissingFileError`, `CorruptFileError` or `FormatVersionError`, and `ForeignFileError` for the plan of
    another run or iteration.
    """
    remedy = REMEDY.format(path=path.parent)
    layout = RunLayout(path.parents[2])
    try:
        manifest = read_object(path, RolloutManifest, "rollout manifest", remedy)
    except MissingFileError:
        raise MissingFileError(
            f"{path}: not there; `rlcm inspect {layout.root}` lists the rollouts, `rlcm sample` makes the next one"
        ) from None
    if path != layout.manifest(manifest.iteration):
        raise ForeignFileError(f"{path}: is the plan of iteration {manifest.iteration}; {remedy}")
    check_owner(manifest.run, layout, path, remedy)
    return manifest
