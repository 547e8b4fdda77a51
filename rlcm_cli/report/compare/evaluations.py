"""What the evaluations of a run's first and last checkpoint say of its reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlcm_cli.report.compare.contenders import Contender
from rlcm_cli.report.run.estimates import estimate
from rlcm_cli.store.evaluations import EvaluationRewards, comparable_evaluations, read_evaluation_rewards


@dataclass(frozen=True)
class Ends:
    """Mean rewards of the evaluated images of a run's first and last checkpoint, as a report of the run has them."""

    checkpoints: tuple[int, int]
    seeds: tuple[float, float] | None
    """Over images of training prompts, whose seeds are held out; None where there are none."""
    prompts: tuple[float, float] | None
    """Over those of prompts that are kept out of training; None where there are none."""


def read_ends(contender: Contender, component: str | None) -> Ends | None:
    """Read the evaluations of a run by its training reward, or by one reward.

    None where there are not two evaluations, where one of them lacks a reward, or where a reward changed between them.
    Raises the errors of `read_evaluation_rewards`.
    """
    layout = contender.layout
    numbers = layout.evaluations()
    if len(numbers) < 2:
        return None
    first, last = (read_evaluation_rewards(layout, number) for number in (numbers[0], numbers[-1]))
    if len(comparable_evaluations([first, last])) < 2:
        return None
    weights = {task: {component: 1.0} for task in contender.tasks} if component else contender.tasks
    names = {name for rewards in weights.values() for name in rewards}
    if not names <= first.rewards.keys() & last.rewards.keys():
        return None
    seeds, prompts = (
        tuple(_average(found, weights, held_out=held_out) for found in (first, last)) for held_out in (False, True)
    )
    return Ends((numbers[0], numbers[-1]), _both(*seeds), _both(*prompts))


def _both(before: float | None, after: float | None) -> tuple[float, float] | None:
    return None if before is None or after is None else (before, after)


def _average(
    evaluation: EvaluationRewards, weights: Mapping[str, Mapping[str, float]], *, held_out: bool
) -> float | None:
    """Average the weighted sum over the images of training prompts, or of those kept out of training.

    Images of a task that does not have the reward are left out.
    """
    rows = [
        row
        for row, (task, kept_out) in enumerate(zip(evaluation.tasks, evaluation.held_out, strict=True))
        if kept_out == held_out and task in weights
    ]
    totals = [
        math.fsum(weight * evaluation.rewards[name][row] for name, weight in weights[evaluation.tasks[row]].items())
        for row in rows
    ]
    found = estimate(totals, [evaluation.prompts[row] for row in rows])
    return None if found is None else found.mean
