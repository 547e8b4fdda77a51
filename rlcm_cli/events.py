"""What phases tell while they work. A caller prints them, plots them, or drops them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlcm_cli.store.metrics import IterationMetrics


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins work on an iteration, counted from 0 as its rollout is; it will do `total` units."""

    phase: str
    iteration: int
    total: int
    unit: str


@dataclass(frozen=True)
class Advanced:
    """A phase has done some of its units."""

    count: int


@dataclass(frozen=True)
class PhaseSkipped:
    """A phase found nothing to do for an iteration, counted from 0 as its rollout is."""

    phase: str
    iteration: int
    reason: str


@dataclass(frozen=True)
class Warned:
    """Something that a user should know, and that stops nothing."""

    message: str


@dataclass(frozen=True)
class IterationTrained:
    """A checkpoint was published."""

    number: int
    metrics: IterationMetrics


@dataclass(frozen=True)
class Evaluated:
    """The fixed images were drawn with a checkpoint. Means are of the training reward."""

    checkpoint: int
    reward_training: float | None
    """On training prompts; None where people have not voted on its images."""
    reward_held_out: float | None
    """On held-out prompts; None where there are none, or no votes."""
    components: Mapping[str, float]
    """Mean of each reward over the images that have it."""
    tasks: Mapping[str, float]
    """Mean of the training reward of each task."""
    in_deviations: bool = False
    """The training reward is a sum of rewards in standard deviations, see `weigh_rewards`."""


@dataclass(frozen=True)
class HackingFound:
    """A monitored reward fell while the trained one rose."""

    checkpoint: int
    monitored: str
    message: str
    stops: bool
    """The loop ends here."""


@dataclass(frozen=True)
class FlatFound:
    """The reward of the fixed images has not risen for as many evaluations as the loop waits; it ends here."""

    checkpoint: int
    evaluations: int
    """In a row, up to this checkpoint's."""
    best: int
    """Checkpoint that reached most."""


@dataclass(frozen=True)
class CostEstimated:
    """What the remaining iterations will take, from one timed model call."""

    seconds: float
    disk_bytes: int
    iterations: int


@dataclass(frozen=True)
class FilesPruned:
    """Rollouts and checkpoints of before were removed, because the settings keep fewer."""

    rollouts: Sequence[int]
    checkpoints: Sequence[int]
    bytes: int


@dataclass(frozen=True)
class FileWritten:
    """A picture or file for the user."""

    path: Path
    what: str


Event = (
    PhaseStarted
    | Advanced
    | PhaseSkipped
    | Warned
    | IterationTrained
    | Evaluated
    | HackingFound
    | FlatFound
    | CostEstimated
    | FilesPruned
    | FileWritten
)
