"""What the evaluations of a run say of each reward: at its first, its best and its last evaluated checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from rlcm_cli.report.compare.runs import ComparedRun
from rlcm_cli.runs.held_out import HeldOutSpan, estimate_images, find_span, sum_by_task, weigh_rewards
from rlcm_cli.store.evaluations import Evaluation, comparable_evaluations, read_evaluation

ValuesOf = Callable[[Evaluation], np.ndarray]
"""Returns a number for each image of an evaluation, NaN where it is not known."""
TOTAL = ""
"""In the place of a reward's name: what is trained for, the weighted sum of the rewards, see `weigh_rewards`."""
PARTS = {"held_out_seeds": False, "held_out_prompts": True}
"""Name of a part of the fixed images → whether its prompts are kept out of training; else only their seeds are."""


@dataclass(frozen=True)
class Reached:
    """Means of a reward over prompts, of one part of the fixed images, as a report of the run has them."""

    first: float
    best: float | None
    """None where the run has no best checkpoint, see `HeldOutSpan`."""
    final: float
    change: float
    """Of the images that have the reward at both, paired; final minus first where every image has it."""


@dataclass(frozen=True)
class HeldOutLevels:
    """What a run reached on its fixed images."""

    checkpoints: tuple[int, int | None, int]
    """The first, the best and the last that were evaluated."""
    means: Mapping[tuple[str, str], Reached]
    """(reward or `TOTAL`, part of `PARTS`) → its means."""
    revisions: Mapping[str, str]
    """Reward → digest of what gave it, of those that have one."""
    kept_out: frozenset[str]
    """The prompts that are kept out of training."""
    counts: tuple[int, int]
    """Prompts and images in all."""


def read_held_out_levels(run: ComparedRun, component: str | None, *, total: bool) -> HeldOutLevels | None:
    """Read what a run reached by its training reward (with `total`) and by each reward, or by one reward only.

    None where there are not two evaluations that can be compared. Raises the errors of `read_evaluation`.
    """
    evaluations = [read_evaluation(run.layout, number, images=False) for number in run.layout.evaluations()]
    span = find_span(evaluations, run.config)
    if span is None:
        return None
    first, best, final = span.first, span.best, span.final
    means = {}
    weights = weigh_rewards(comparable_evaluations(evaluations), run.config) if total and component is None else None
    for name, values_of in _list_values(run, component, span, weights):
        for part, held_out in PARTS.items():
            reached = _reach(span, values_of, held_out=held_out)
            if reached:
                means[name, part] = reached
    return HeldOutLevels(
        checkpoints=(first.checkpoint, None if best is None else best.checkpoint, final.checkpoint),
        means=means,
        revisions=final.revisions,
        kept_out=frozenset(prompt for prompt, out in zip(final.prompts, final.held_out, strict=True) if out),
        counts=(len(set(final.prompts)), len(final.prompts)),
    )


def _list_values(
    run: ComparedRun, component: str | None, span: HeldOutSpan, weights: Mapping[str, Mapping[str, float]] | None
) -> Iterator[tuple[str, ValuesOf]]:
    """List what is to be averaged: the total where it has `weights`, then reward by reward, or one reward only."""
    if weights is not None:
        yield TOTAL, partial(sum_by_task, tasks=weights)
    for name in [component] if component else dict.fromkeys([*run.trained, *run.rewards, *span.final.rewards]):
        if name in span.first.rewards and name in span.final.rewards:
            yield name, partial(_values_of, name)


def _values_of(name: str, found: Evaluation) -> np.ndarray:
    given = found.rewards.get(name, np.full(len(found.prompts), np.nan))
    return given.astype(np.float64)


def _reach(span: HeldOutSpan, values_of: ValuesOf, *, held_out: bool) -> Reached | None:
    rows = span.first.held_out == held_out
    then, now = values_of(span.first), values_of(span.final)
    before, after, moved = (estimate_images(span.first, values, rows) for values in (then, now, now - then))
    best = estimate_images(span.best, values_of(span.best), span.best.held_out == held_out) if span.best else None
    if before is None or after is None or moved is None:
        return None
    return Reached(before.mean, None if best is None else best.mean, after.mean, moved.mean)
