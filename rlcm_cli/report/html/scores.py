"""The stored rewards of all images: their distribution in each iteration, and how each prompt changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlcm_cli.report.run.data import RunData, StoredRewards

BINS = 24
MOST_ROWS = 400
"""Prompts of a table: those with the most images."""


@dataclass(frozen=True)
class Histogram:
    """Counts of a reward's values over bins of one width, in each iteration."""

    start: float
    width: float
    iterations: list[int]
    """Counted from 1, as people and the curves do."""
    counts: list[list[int]]
    """A row an iteration; the outermost bins hold what lies beyond, too."""


@dataclass(frozen=True)
class PromptRow:
    """How a prompt changed: mean rewards of its images at the start and at the end of training."""

    prompt: str
    images: int
    first: float | None
    last: float | None
    held_out: bool = False

    @property
    def change(self) -> float | None:
        """The difference, None where the prompt lacks one of the means."""
        return None if self.first is None or self.last is None else self.last - self.first


@dataclass(frozen=True)
class PromptTable:
    """Prompts and how their rewards changed."""

    rows: Sequence[PromptRow]
    left_out: int
    source: str
    """What the means are of, as shown."""


def count_values(data: RunData, reward: str) -> Histogram | None:
    """Count a reward's values over common bins; None where none are stored.

    The bins reach over all values but the outermost half percent on either side, so that a few far ones do not
    press the others into a single bin.
    """
    rows = [
        (rollout.manifest.iteration, values[~np.isnan(values)].astype(np.float64))
        for rollout in data.rollouts
        if (values := rollout.rewards.get(reward)) is not None
    ]
    rows = [(iteration, values) for iteration, values in rows if len(values)]
    if not rows:
        return None
    ordered = np.sort(np.concatenate([values for _, values in rows]))
    beyond = int(0.005 * len(ordered))
    low, high = float(ordered[beyond]), float(ordered[len(ordered) - 1 - beyond])
    width = (high - low) / BINS or max(abs(low), 1.0) * 1e-3
    counts = []
    for _, values in rows:
        bins = np.floor((values - low) / width).clip(0, BINS - 1).astype(int)
        counts.append(np.bincount(bins, minlength=BINS).tolist())
    return Histogram(low, width, [iteration + 1 for iteration, _ in rows], counts)


def tabulate_prompts(data: RunData, reward: str) -> PromptTable | None:
    """Average a reward over each prompt's images, of the first and the last fifth of the iterations.

    Where no rewards of iterations are stored, of the first and the last evaluation instead.
    """
    rollouts = [rollout for rollout in data.rollouts if reward in rollout.rewards]
    if len(rollouts) >= 2:
        span = max(1, len(rollouts) // 5)
        first, last = (list(_list_values(part, reward)) for part in (rollouts[:span], rollouts[-span:]))
        every = list(_list_values(rollouts, reward))
        return _tabulate(every, first, last, set(), f"first and last {span} of {len(rollouts)} iterations")
    evaluations = [evaluation for evaluation in data.evaluations if reward in evaluation.rewards]
    if len(evaluations) < 2:
        return None
    before, after = (
        list(zip(found.prompts, found.rewards[reward].tolist(), strict=True))
        for found in (evaluations[0], evaluations[-1])
    )
    kept_out = {
        prompt for prompt, out in zip(evaluations[0].prompts, evaluations[0].held_out.tolist(), strict=True) if out
    }
    source = f"evaluations of checkpoints {evaluations[0].checkpoint} and {evaluations[-1].checkpoint}"
    return _tabulate(before + after, before, after, kept_out, source)


def _list_values(rollouts: Sequence[StoredRewards], reward: str) -> Iterator[tuple[str, float]]:
    for rollout in rollouts:
        for sample, value in enumerate(rollout.rewards[reward].tolist()):
            yield rollout.manifest.prompt_of(sample), value


def _tabulate(
    every: Sequence[tuple[str, float]],
    first: Sequence[tuple[str, float]],
    last: Sequence[tuple[str, float]],
    held_out: set[str],
    source: str,
) -> PromptTable:
    counts = {prompt: count for prompt, (_, count) in _average(every).items()}
    start, end = _average(first), _average(last)
    shown = sorted(counts, key=lambda prompt: (-counts[prompt], prompt))[:MOST_ROWS]
    rows = [
        PromptRow(
            prompt,
            counts[prompt],
            start[prompt][0] if prompt in start else None,
            end[prompt][0] if prompt in end else None,
            prompt in held_out,
        )
        for prompt in shown
    ]
    return PromptTable(rows, len(counts) - len(rows), source)


def _average(scored: Sequence[tuple[str, float]]) -> dict[str, tuple[float, int]]:
    """Return prompt → (mean, number) of its values."""
    values: dict[str, list[float]] = {}
    for prompt, value in scored:
        if not math.isnan(value):
            values.setdefault(prompt, []).append(value)
    return {prompt: (sum(each) / len(each), len(each)) for prompt, each in values.items()}
