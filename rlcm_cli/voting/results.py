"""The count of a run's votes: scores next to the images, a table of pairs, and how checkpoints compare."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlcm_cli.core.digests import sha256
from rlcm_cli.core.paired_comparisons import WinRate
from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.rewards.votes import VOTES
from rlcm_cli.runs.run import Run
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.evaluations import publish_rescored, read_evaluation
from rlcm_cli.store.manifest import RolloutManifest, read_manifest
from rlcm_cli.store.reward_versions import newest_scores, split_scores_folder
from rlcm_cli.store.rollouts import missing_rewards, missing_shards, publish_rewards, read_rewards
from rlcm_cli.store.votes import ImageReference, read_votes, standing_votes
from rlcm_cli.voting.contests import (
    Contender,
    contests_of_evaluations,
    contests_of_rollout,
    rollout_records,
    sample_references,
)
from rlcm_cli.voting.counting import (
    PairVotes,
    agreement,
    group_votes,
    preferred_pairs,
    score_images,
    win_rate,
)

SAME = 1e-4
"""Scores that differ by less were made from the same votes."""


@dataclass(frozen=True)
class RolloutCount:
    """What the votes on an iteration came to."""

    iteration: int
    images: int
    """That could be compared."""
    scored: int
    """That somebody voted on."""


@dataclass(frozen=True)
class CheckpointComparison:
    """How a checkpoint compares with the first one that was voted on."""

    contender: Contender
    against: Contender
    rate: WinRate


@dataclass(frozen=True)
class Count:
    """What all votes of a run came to."""

    votes: int
    """Without those that were replaced or skipped."""
    ties: int
    skipped: int
    voters: int
    agreement: tuple[float, int] | None
    """Of two voters on the same pair: how often they said the same, and how many such twos there are."""
    rollouts: Sequence[RolloutCount] = ()
    comparisons: Sequence[CheckpointComparison] = ()
    pairs: Sequence[tuple[int, int, int]] = field(default_factory=list)
    """(iteration, better sample, worse sample)."""


def count_votes(run: Run, contenders: Sequence[Contender]) -> Count:
    """Count a run's votes, and store a score of each image that was voted on: the reward `votes`.

    Scores of rollouts are sidecars, those of evaluations later rewards of them. What has not changed stays.

    Args:
        run: Whose votes.
        contenders: Every evaluation that votes may be on, of this run and of others.

    Raises:
        StoreError: If a vote, a plan or an evaluation is damaged.
    """
    read = read_votes(run.layout)
    standing = standing_votes(read)
    votes = group_votes(standing)
    voted = {image.record for pair in votes for image in pair}
    rollouts, pairs = [], []
    for iteration in run.layout.iterations():
        manifest = read_manifest(run.layout.manifest(iteration))
        if not missing_shards(run.layout, manifest) and voted & {*rollout_records(run.layout, manifest)}:
            rollouts.append(_score_rollout(run, manifest, votes))
            pairs += _list_pairs(run, manifest, votes)
    used = sum(map(len, votes.values()))
    return Count(
        votes=used,
        ties=sum(vote.answer == "tie" for vote in standing),
        skipped=len(standing) - used,
        voters=sum(map(bool, read.values())),
        agreement=agreement(votes),
        rollouts=rollouts,
        comparisons=_compare(run, [own for own in contenders if own.record in voted], votes),
        pairs=pairs,
    )


def check_pairs_file(path: Path) -> None:
    """Raise `ConfigError` for a path that is not of a CSV file, or holds something else than a table of pairs."""
    from rlcm_cli.learning.preferences import COLUMNS  # here: it imports torch, and a page should open soon

    if path.suffix.lower() != ".csv":
        raise ConfigError(f"--pairs {path}: name a file that ends in .csv")
    if path.exists():
        with path.open("rb") as file:
            start = file.readline(100).decode(errors="replace").strip()
        if start != ",".join(COLUMNS):
            raise ConfigError(f"--pairs {path}: holds something else than a table of pairs; name another file")


def write_pairs(path: Path, pairs: Sequence[tuple[int, int, int]]) -> None:
    """Write the table of pairs that `objective.pairs` reads, in place of an earlier one."""
    from rlcm_cli.learning.preferences import COLUMNS

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *pairs])
    replace_bytes(path, text.getvalue().encode())


def _score_rollout(run: Run, manifest: RolloutManifest, votes: PairVotes) -> RolloutCount:
    """Publish the scores of an iteration's images; those that nobody voted on get 0, the mean of all."""
    layout, tasks = run.layout, run.scored_tasks(VOTES)
    scores = score_images(contests_of_rollout(layout, manifest.iteration, tasks), votes)
    values = np.full(manifest.shards[-1][1], np.nan, np.float32)
    of_tasks = manifest.samples_of(tasks)
    references = sample_references(layout, manifest)
    values[of_tasks] = [scores.get(references[sample], 0.0) for sample in of_tasks]
    _publish_scores(run, manifest, tasks, values)
    return RolloutCount(manifest.iteration, len(of_tasks), len(scores))


def _publish_scores(run: Run, manifest: RolloutManifest, tasks: Sequence[str], values: np.ndarray) -> None:
    """Publish the scores of an iteration, float32 [samples], as a later version where they differ from those there."""
    import torch

    layout, spec = run.layout, RewardSpec(VOTES)
    newest = newest_scores(layout, manifest.iteration, spec.directory)
    missing = missing_rewards(layout, manifest, newest)
    if not missing:
        before = read_rewards(layout, manifest, spec.directory, tasks)
        if np.allclose(before, values, rtol=0, atol=SAME, equal_nan=True):
            return
    folder = spec.directory
    if newest != folder or len(missing) < len(manifest.shards):
        mark = sha256(values.tobytes())[:8]
        # A process that was killed may have left a part of these very scores.
        number = split_scores_folder(newest)[1] + (not newest.endswith(f"-{mark}"))
        folder = f"{spec.directory}-v{number}-{mark}"
    # No revision: scores of more votes are not those of another reward, whose statistics would begin again.
    identity = {"name": spec.name, "settings": spec.resolved, "digest": spec.digest, "revision": ""}
    for number in range(len(manifest.shards)):
        samples = manifest.samples_of(tasks, number)
        index = torch.tensor(samples, dtype=torch.int64)
        publish_rewards(layout, manifest, number, folder, identity, index, torch.from_numpy(values[samples]))


def _list_pairs(run: Run, manifest: RolloutManifest, votes: PairVotes) -> list[tuple[int, int, int]]:
    contests = contests_of_rollout(run.layout, manifest.iteration, run.scored_tasks(VOTES))
    sample_of = {image: sample for sample, image in enumerate(sample_references(run.layout, manifest))}
    return [
        (manifest.iteration, sample_of[better], sample_of[worse]) for better, worse in preferred_pairs(contests, votes)
    ]


def _compare(run: Run, contenders: Sequence[Contender], votes: PairVotes) -> list[CheckpointComparison]:
    """Compare each contender with the first one, and publish the scores of this run's evaluations."""
    if len(contenders) < 2:
        return []
    contests = contests_of_evaluations(contenders)
    scores = score_images(contests, votes)
    for contender in contenders:
        if contender.layout == run.layout:
            _publish_evaluation(contender, scores)
    first = contenders[0]
    rates = [(other, win_rate(contests, votes, other.record, first.record)) for other in contenders[1:]]
    return [CheckpointComparison(other, first, rate) for other, rate in rates if rate is not None]


def _publish_evaluation(contender: Contender, scores: dict[ImageReference, float]) -> None:
    """Add the scores of a checkpoint's images to its evaluation; those that nobody voted on have none."""
    found = read_evaluation(contender.layout, contender.checkpoint, images=False)
    record = contender.record
    values = np.array(
        [scores.get(ImageReference(record=record, row=row), np.nan) for row in range(len(found.seed))], np.float32
    )
    before = found.rewards.get(VOTES)
    if before is None or not np.allclose(before, values, rtol=0, atol=SAME, equal_nan=True):
        publish_rescored(contender.layout, found, {VOTES: values}, {})
