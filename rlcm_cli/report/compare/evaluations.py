"""What the evaluations of a run say of each reward: at its first, its best and its last evaluated checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rlcm_cli.report.compare.runs import ComparedRun
from rlcm_cli.report.run.goals import sum_by_task
from rlcm_cli.report.run.summary import estimate_part
from rlcm_cli.runs.held_out import find_span
from rlcm_cli.store.evaluations import Evaluation, read_evaluation

TOTAL = ""
"""In the place of a reward's name: what is trained for, the weighted sum of the rewards as they are."""
PARTS = {"held_out_seeds": False, "held_out_prompts": True}
"""Name of a part of the fixed images → whether its prompts are kept out of training; else only their seeds are."""


@dataclass(frozen=True)
class Reached:
    """Means of a reward over prompts, of one part of the fixed images, as a report of the run has them."""

    first: float
    best: float | None
    """None where the run has no best checkpoint, see `HeldOutSpan`."""
    final: float


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


def read_held_out_levels(run: ComparedRun, component: str | None) -> HeldOutLevels | None:
    """Read what a run reached by its training reward and by each reward, or by one reward only.

    None where there are not two evaluations that can be compared. Raises the errors of `read_evaluation`.
    """
    evaluations = [read_evaluation(run.layout, number, images=False) for number in run.layout.evaluations()]
    span = find_span(evaluations, run.config)
    if span is None:
        return None
    first, best, final = span.first, span.best, span.final
    means = {}
    for name, tasks in _list_sums(run, component, final):
        needed = {reward for weights in tasks.values() for reward in weights}
        if needed <= first.rewards.keys() & final.rewards.keys():
            in_best = best if best is not None and needed <= best.rewards.keys() else None
            for part, held_out in PARTS.items():
                reached = _reach(first, in_best, final, tasks, held_out=held_out)
                if reached:
                    means[name, part] = reached
    return HeldOutLevels(
        checkpoints=(first.checkpoint, None if best is None else best.checkpoint, final.checkpoint),
        means=means,
        revisions=final.revisions,
        kept_out=frozenset(prompt for prompt, out in zip(final.prompts, final.held_out, strict=True) if out),
        counts=(len(set(final.prompts)), len(final.prompts)),
    )


def _list_sums(
    run: ComparedRun, component: str | None, final: Evaluation
) -> Iterator[tuple[str, Mapping[str, Mapping[str, float]]]]:
    """List what is to be averaged, with its weights by task: the total, then reward by reward, or one reward only."""
    if component is None:
        yield TOTAL, run.tasks
    for name in [component] if component else list(dict.fromkeys([*run.trained, *run.rewards, *final.rewards])):
        if name in final.rewards:
            known = ~np.isnan(final.rewards[name])
            scored = {task for task, is_known in zip(final.tasks, known.tolist(), strict=True) if is_known}
            yield name, {task: {name: 1.0} for task in scored}


def _reach(
    first: Evaluation,
    best: Evaluation | None,
    final: Evaluation,
    tasks: Mapping[str, Mapping[str, float]],
    *,
    held_out: bool,
) -> Reached | None:
    before, chosen, after = (
        None if found is None else estimate_part(found, sum_by_task(found, tasks), held_out=held_out)
        for found in (first, best, final)
    )
    return Reached(before.mean, chosen.mean if chosen else None, after.mean) if before and after else None
