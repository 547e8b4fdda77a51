"""The rewards of the fixed images: what each evaluated checkpoint reached, and which one is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlcm_cli.config import Config
from rlcm_cli.core.estimates import Estimate, estimate
from rlcm_cli.store.evaluations import Evaluation, comparable_evaluations, read_evaluation
from rlcm_cli.store.layout import RunLayout


class HeldOutRewards:
    """What the evaluated checkpoints of a run reached, read again only when another one has been evaluated."""

    def __init__(self, layout: RunLayout, config: Config) -> None:
        self._layout, self._config = layout, config
        self._numbers: list[int] = []
        self._reached: dict[int, float] = {}

    def reached(self, newest: int | None = None) -> Mapping[int, float]:
        """Return what `read_held_out` does; `newest`: a checkpoint whose evaluation a file system may list late."""
        numbers = sorted({*self._layout.evaluations(), *([] if newest is None else [newest])})
        if numbers != self._numbers:
            self._reached = read_held_out(self._layout, self._config, numbers)
            self._numbers = numbers
        return self._reached

    def best(self) -> set[int]:
        """Return the best checkpoint, of the one or none that `best_held_out` finds."""
        number = best_held_out(self.reached())
        return set() if number is None else {number}


def read_held_out(layout: RunLayout, config: Config, numbers: Sequence[int] | None = None) -> dict[int, float]:
    """Read what evaluated checkpoints of a run reached, as `measure_held_out` has it; `numbers`: None means all.

    Evaluations whose rewards were given by another version of a reward than the last one's are left out. Raises as
    `read_evaluation`.
    """
    chosen = layout.evaluations() if numbers is None else numbers
    found = [read_evaluation(layout, number, images=False) for number in chosen]
    return measure_held_out(comparable_evaluations(found), config)


def estimate_images(found: Evaluation, values: np.ndarray, chosen: np.ndarray | None = None) -> Estimate | None:
    """Average values of fixed images over prompts, each the mean of its own known images.

    Every mean of held-out rewards that is shown or decides anything is this one.

    Args:
        found: The evaluation.
        values: A number an image, [B], NaN where it is not known.
        chosen: Which images count, bool [B]; None: all.

    Returns:
        The mean with its standard error over prompts; None where no value is known.
    """
    rows = np.arange(len(found.prompts)) if chosen is None else np.flatnonzero(chosen)
    return estimate(values[rows].astype(np.float64).tolist(), [found.prompts[row] for row in rows])


def sum_by_task(found: Evaluation, tasks: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Return the weighted sum of each image by the weights of its task, float64 [B].

    NaN for images of other tasks, and for those of which a reward of their task is not known.
    """
    total = np.full(len(found.tasks), np.nan)
    unknown = np.full(len(found.tasks), np.nan)
    for task, weights in tasks.items():
        rows = rows_of_task(found, task)
        parts = [
            weight * found.rewards.get(name, unknown)[rows].astype(np.float64) for name, weight in weights.items()
        ]
        total[rows] = np.sum(parts, axis=0)
    return total


def rows_of_task(found: Evaluation, task: str) -> np.ndarray:
    """Return which images are of a task, bool [B]."""
    return np.array([of_image == task for of_image in found.tasks], dtype=bool)


def has_deviations(config: Config) -> dict[str, bool]:
    """Return for each task whether the sum of its rewards is one of standard deviations, as training normalises them.

    A single reward of a single task stays as it is.
    """
    tasks = config.joint_tasks()
    several = sum(len(task.rewards) for task in tasks.values()) > 1
    return {name: several and task.combine != "sum" for name, task in tasks.items()}


def weigh_rewards(evaluations: Sequence[Evaluation], config: Config) -> dict[str, dict[str, float]]:
    """Return task → reward → by what its values are multiplied in the sum that is trained for.

    It is the weight where rewards are summed as they are. Where training normalises them, see `has_deviations`, it is
    the weight over the reward's standard deviation over the images of the first evaluation that has it, so that the
    reward with the largest unit does not decide.

    Args:
        evaluations: Of the run, which can be compared, by checkpoint, ascending.
        config: Its configuration.
    """
    scaled = has_deviations(config)
    return {
        task: {
            name: weight / _first_spread(evaluations, task, name) if scaled[task] else weight
            for name, weight in settings.rewards.items()
        }
        for task, settings in config.joint_tasks().items()
    }


def read_weights(layout: RunLayout, config: Config, newest: int) -> dict[str, dict[str, float]]:
    """Read what `weigh_rewards` returns; `newest`: a checkpoint whose evaluation a file system may list late."""
    numbers = sorted({*layout.evaluations(), newest}) if any(has_deviations(config).values()) else []
    found = [read_evaluation(layout, number, images=False) for number in numbers]
    return weigh_rewards(comparable_evaluations(found), config)


def measure_held_out(evaluations: Sequence[Evaluation], config: Config) -> dict[int, float]:
    """Return what each evaluation reached of what is trained for, by checkpoint, ascending.

    It is the mean over all fixed images, as `estimate_images` has it, of their sums by `weigh_rewards`. An evaluation
    without a trained reward is left out; of people's votes the images count that somebody voted on.
    """
    ordered = sorted(evaluations, key=lambda found: found.checkpoint)
    weights = weigh_rewards(ordered, config)
    whole = [
        found
        for found in ordered
        if all(not np.isnan(sum_by_task(found, {task: weights[task]})).all() for task in weights)
    ]
    reached = {found.checkpoint: estimate_images(found, sum_by_task(found, weights)) for found in whole}
    return {checkpoint: known.mean for checkpoint, known in reached.items() if known is not None}


def measure_reward(evaluations: Sequence[Evaluation], name: str) -> dict[int, float]:
    """Return the mean of one reward, watched or trained for, over the fixed images of each evaluation that has it."""
    reached = {
        found.checkpoint: estimate_images(found, found.rewards[name])
        for found in sorted(evaluations, key=lambda found: found.checkpoint)
        if name in found.rewards
    }
    return {checkpoint: known.mean for checkpoint, known in reached.items() if known is not None}


def measure_spread(found: Evaluation, task: str, name: str) -> float:
    """Return the standard deviation of a reward over the images of a task, by which a normalised sum divides it.

    1 where the images do not differ.
    """
    values = _values(found, task, name)
    return float(values.std()) if len(values) and values.std() else 1.0


def best_held_out(reached: Mapping[int, float]) -> int | None:
    """Return the checkpoint that reached most, the first of equals; None where fewer than two can be compared."""
    return max(reached, key=lambda number: reached[number]) if len(reached) > 1 else None


def find_flat(reached: Mapping[int, float], config: Config) -> tuple[int, int] | None:
    """Return the best checkpoint and for how many evaluations none was better, where a run is to stop because of it.

    Only the evaluations that `evaluate.every` asks for count; None: the run goes on.
    """
    every, patience = config.evaluate.every, config.runtime.stop_when_flat
    if every is None or patience is None:
        return None
    regular = {number: value for number, value in sorted(reached.items()) if number % every == 0}
    best = best_held_out(regular)
    since = 0 if best is None else sum(number > best for number in regular)
    return (best, since) if best is not None and since >= patience else None


@dataclass(frozen=True)
class HeldOutSpan:
    """The evaluations that tell what a training came to: what every table calls first, best and final."""

    first: Evaluation
    best: Evaluation | None
    """That of the best checkpoint, as `best_held_out` has it; None where an evaluation lacks a trained reward."""
    final: Evaluation


def find_span(evaluations: Sequence[Evaluation], config: Config) -> HeldOutSpan | None:
    """Find the first, the best and the last of a run's evaluations, which are by checkpoint, ascending.

    Those that cannot be compared with the last one do not count, see `comparable_evaluations`. None where there are
    not two, or they are not of the same prompts and seeds.
    """
    found = comparable_evaluations(evaluations)
    if len(found) < 2:
        return None
    first, final = found[0], found[-1]
    if first.prompts != final.prompts or first.seed.tolist() != final.seed.tolist():
        return None
    number = best_held_out(measure_held_out(found, config))
    return HeldOutSpan(first, next((one for one in found if one.checkpoint == number), None), final)


def _first_spread(evaluations: Sequence[Evaluation], task: str, name: str) -> float:
    known = (found for found in evaluations if name in found.rewards and len(_values(found, task, name)))
    first = next(known, None)
    return 1.0 if first is None else measure_spread(first, task, name)


def _values(found: Evaluation, task: str, name: str) -> np.ndarray:
    given = found.rewards[name][rows_of_task(found, task)].astype(np.float64)
    values: np.ndarray = given[~np.isnan(given)]
    return values
