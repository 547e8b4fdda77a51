"""What the objectives of pairs have in common: which pairs there are, and what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlcm_cli.objectives import AdvantageRules, Metric
from rlcm_cli.sections import Section

if TYPE_CHECKING:
    from rlcm_cli.config import Config

ACCURACY = Metric(
    "accuracy", "Accuracy", "Share of the pairs whose better image the policy prefers more than the base model does."
)
# Of a group, which of its images are best and worst.
ADVANTAGES = AdvantageRules(admitted=("group", "leave-one-out"), clipped=False)


class PairSettings(Section):
    """Settings of an objective that learns from pairs of images."""

    pairs: str | None = None
    """A table of pairs (.csv, .tsv, .json, .jsonl, .parquet) with the columns iteration, chosen and rejected: numbers
    of rollouts and of samples, from 0. None: the best and the worst image of each group, by their rewards."""


def pairs_file(settings: PairSettings) -> str | None:
    """Return the table that says which of two samples is better."""
    return settings.pairs


def check(config: Config) -> None:
    """Refuse minibatches that tear groups."""
    group, minibatch = config.sample.group_size, config.train.minibatch_size or config.sample.samples
    if group < 2:
        raise ValueError(
            f"objective.kind {config.objective.kind} compares images of a prompt; set sample.group_size (now {group}) "
            "to 2 or more"
        )
    if minibatch % group:
        raise ValueError(
            f"train.minibatch_size is {minibatch}, not a multiple of sample.group_size {group}, so that pairs would "
            "be torn"
        )


def share_of_samples(config: Config) -> float:
    """Return which share of the samples is in a pair, where each group has one."""
    return 2 / config.sample.group_size
