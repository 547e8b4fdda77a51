"""What the evaluations of a run's first and last checkpoint say of its reward."""

from __future__ import annotations

from dataclasses import dataclass

from rlcm_cli.report.compare.runs import ComparedRun
from rlcm_cli.report.run.goals import sum_by_task
from rlcm_cli.report.run.summary import estimate_part
from rlcm_cli.store.evaluations import comparable_evaluations, read_evaluation


@dataclass(frozen=True)
class FirstAndLast:
    """Mean rewards of the evaluated images of a run's first and last checkpoint, as a report of the run has them."""

    checkpoints: tuple[int, int]
    seeds: tuple[float, float] | None
    """Over images of training prompts, whose seeds are held out; None where there are none."""
    prompts: tuple[float, float] | None
    """Over images of held-out prompts; None where there are none."""


def read_first_and_last(run: ComparedRun, component: str | None) -> FirstAndLast | None:
    """Read the evaluations of a run by its training reward, or by one reward, whose tasks' images it is then of.

    None where there are not two evaluations, where one of them lacks a reward, or where a reward changed between them.
    Raises the errors of `read_evaluation`.
    """
    numbers = run.layout.evaluations()
    if len(numbers) < 2:
        return None
    first, last = (read_evaluation(run.layout, number) for number in (numbers[0], numbers[-1]))
    if len(comparable_evaluations([first, last])) < 2:
        return None
    tasks = {task: {component: 1.0} for task in run.tasks} if component else run.tasks
    names = {name for weights in tasks.values() for name in weights}
    if not names <= first.rewards.keys() & last.rewards.keys():
        return None
    means: list[tuple[float, float] | None] = []
    for held_out in (False, True):
        before, after = (estimate_part(found, sum_by_task(found, tasks), held_out=held_out) for found in (first, last))
        means.append((before.mean, after.mean) if before and after else None)
    return FirstAndLast((numbers[0], numbers[-1]), *means)
