"""The objectives, one file each: what is made of the rewards of an iteration.

An objective is found by being here: every module of this folder whose name does not begin with an underscore has a
constant `OBJECTIVE`. Its kind, which `[objective]` of a configuration and `--objective` name, is the name of its
module with hyphens. No module of this folder imports torch at its top, since the configuration reads their settings.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rlcm_cli.discovery import discover

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.config import Config
    from rlcm_cli.learning.learner import Learner, UpdateMetrics
    from rlcm_cli.learning.minibatches import Minibatch
    from rlcm_cli.sections import Section

    SettingsT = TypeVar("SettingsT", bound=Section)
else:
    SettingsT = TypeVar("SettingsT")

DEFAULT = "ppo"
BACKWARD_FORWARDS = 2
"""A backward pass in forwards, by the usual rule of thumb."""


class Need(enum.Enum):
    """What an objective needs in addition to samples, their rewards and the model."""

    ACTIONS = "actions"
    """Stored transitions whose calls drew noise. Replaying them before the first update tells whether the model that
    trains is the one that drew."""
    OLD_LOG_PROBS = "old log-probabilities"
    """Its gradient depends on those stored in drawing: where these are too coarse, training takes them itself."""
    TRAJECTORY_PAIRS = "pairs of whole trajectories"
    """It compares two samples of a prompt by the log-ratios of all their actions, which a pass of its own takes
    before the one with a gradient."""
    PAIRS = "pairs of samples"
    """It compares two samples of a group, by their rewards or as `Objective.pairs_file` says."""
    OWN_SAMPLES = "samples of the policy itself"
    """Nothing in it corrects for samples that another policy drew."""
    FINAL_LATENTS = "final latents"
    """What the last model call gave, before it was decoded: stored with the samples."""
    OLD_POLICY = "old policy"
    """Predictions of the policy that drew the samples, in addition to those of the present one: a copy of its
    trained weights stays on the device (`Learner.old_policy`). See also `Objective.old_share`."""


@dataclass(frozen=True)
class AdvantageRules:
    """What an objective takes of `[train]`'s advantages."""

    admitted: tuple[str, ...] = ("per-prompt", "batch", "group", "leave-one-out")
    """The kinds of `train.advantages` that make sense; the first is the default."""
    clipped: bool = True
    """Whether `train.advantage_clip` cuts them."""
    differences_only: bool = False
    """Whether advantages that are all equal teach nothing, as those of a regression; else only those of 0 do."""


def admit_all(config: Config) -> None:
    """Refuse no configuration."""


def keep(settings: Any, advantages: Tensor) -> Tensor:
    """Return the advantages as they are."""
    return advantages


def no_clip_range(settings: Any) -> float | None:
    """Return None: no ratio is clipped."""
    return None


def no_file(settings: Any) -> str | None:
    """Return None: there is no table of pairs."""
    return None


@dataclass(frozen=True)
class Metric:
    """A number that optimizer steps measure, and how a report shows it."""

    name: str
    """In the metrics of an iteration."""
    title: str
    """Of its chart."""
    note: str = ""
    """What a reader should know of it."""


@dataclass(frozen=True)
class Objective(Generic[SettingsT]):
    """An objective: plain functions, which import torch when they are called."""

    settings: type[SettingsT]
    """Its table of a configuration, with `kind: Literal[…]`. The class's docstring says what the objective does."""
    accumulate: Callable[[Learner, Minibatch], UpdateMetrics]
    """Its whole step: add the gradient of a minibatch to that of the trained weights, which other losses may share,
    and return what it measured. Once an optimizer step; it depends on the micro-batch size by rounding only."""
    forwards: Callable[[Config, int], float]
    """Model forwards, a backward pass counted as `BACKWARD_FORWARDS`, that training takes for each sample of an
    iteration; the integer is the number of a trajectory's actions. Not whole where only some samples train."""
    metrics: tuple[Metric, ...]
    """What `accumulate` measures on every step, in the order in which a report charts it."""
    needs: frozenset[Need]
    advantages: AdvantageRules = field(default_factory=AdvantageRules)
    check: Callable[[Config], None] = admit_all
    """Raise `ValueError` for a configuration that the objective refuses, with what to do about it."""
    weigh: Callable[[SettingsT, Tensor], Tensor] = keep
    """Advantages of an iteration, float32 [B], clipped already → a weight for each sample, float32 [B]."""
    clip_range: Callable[[SettingsT], float | None] = no_clip_range
    """How far a ratio may be from 1 before the objective cuts it; rounding must be small next to it. None: any."""
    pairs_file: Callable[[SettingsT], str | None] = no_file
    """A table that says which of two samples is better (`learning.preferences`); None: rewards say so."""
    old_share: Callable[[SettingsT, int], float] | None = None
    """(settings, optimizer steps taken so far) → how much of its own weights the policy that draws keeps after an
    iteration; the rest is the trained ones'. None: the trained policy draws."""

    @property
    def kind(self) -> str:
        """The name that a configuration chooses it by."""
        return str(self.settings.model_fields["kind"].default)


def find_objective(config: Config) -> Objective[Any]:
    """Return the objective of a configuration."""
    return OBJECTIVES[config.objective.kind]


OBJECTIVES: Mapping[str, Objective[Any]] = discover(__name__, __path__, "OBJECTIVE", Objective)
"""Every objective, by its kind. The modules import what stands above."""
