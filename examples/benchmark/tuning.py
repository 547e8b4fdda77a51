"""How every method is tuned: a grid of learning rates, then the method's own knob, in the same number of trials.

1. The learning rates of the grid, with the first value of the knob.
2. While the best of them is at an edge, and at most twice: the next one beyond it, twice or half of it.
3. The other values of the knob, at the best learning rate.
4. With the trials that are left: learning rates √2 from the best trial's, with its value of the knob.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

EXTENSIONS = 2
"""Learning rates beyond the grid that step 2 may add."""


@dataclass(frozen=True)
class Trial:
    """A learning rate and a value of the knob, by its number."""

    learning_rate: float
    knob: int = 0


@dataclass(frozen=True)
class Space:
    """What may be tried."""

    learning_rates: tuple[float, ...]
    """The grid, ascending, each twice the one before it."""
    knobs: tuple[tuple[str, ...], ...]
    """Settings of each value of the knob; the first one is what the grid is tried with."""
    trials: int

    def name(self, trial: Trial) -> str:
        """Return a name for files."""
        return f"lr{trial.learning_rate:g}-k{trial.knob}"

    def settings(self, trial: Trial) -> tuple[str, ...]:
        """Return the settings of a trial."""
        return f"train.learning_rate={trial.learning_rate:g}", *self.knobs[trial.knob]

    def all_trials(self) -> Iterator[Trial]:
        """Return every trial that tuning may come to."""
        return itertools.starmap(Trial, itertools.product(self.ladder(), range(len(self.knobs))))

    def ladder(self) -> list[float]:
        """Return the learning rates that may be tried, ascending, each √2 of the one before it."""
        below = 2 * EXTENSIONS + 1
        count = 2 * len(self.learning_rates) - 1 + 2 * below
        return [_rounded(self.learning_rates[0] * 2 ** ((step - below) / 2)) for step in range(count)]

    def near(self, rate: float) -> list[float]:
        """Return the learning rates beside one."""
        ladder = self.ladder()
        place = ladder.index(rate)
        return [ladder[other] for other in (place + 1, place - 1) if 0 <= other < len(ladder)]


def next_trial(space: Space, scores: Mapping[Trial, float]) -> Trial | None:
    """Return what to try next, from the scores of what was tried (higher is better); None: tuning is at its end."""
    if len(scores) >= space.trials:
        return None
    return next((trial for trial in _wanted(space, scores) if trial not in scores), None)


def choose(space: Space, scores: Mapping[Trial, float]) -> Trial | None:
    """Return the best trial of a tuning that is at its end; None: it is not."""
    if next_trial(space, scores) is not None:
        return None
    return max(scores, key=lambda trial: scores[trial])


def is_at_edge(space: Space, scores: Mapping[Trial, float]) -> bool:
    """Say whether the best learning rate is the lowest or the highest of those tried."""
    rates = [trial.learning_rate for trial in scores]
    return max(scores, key=lambda trial: scores[trial]).learning_rate in (min(rates), max(rates))


def _wanted(space: Space, scores: Mapping[Trial, float]) -> Iterator[Trial]:
    """Yield the trials in their order; each depends on the scores of those before it."""
    rates = list(space.learning_rates)
    yield from map(Trial, rates)

    def best_rate() -> float:
        return max(rates, key=lambda rate: scores[Trial(rate)])

    for _ in range(EXTENSIONS):
        if best_rate() == rates[0]:
            rates.insert(0, _rounded(rates[0] / 2))
            yield Trial(rates[0])
        elif best_rate() == rates[-1]:
            rates.append(_rounded(rates[-1] * 2))
            yield Trial(rates[-1])
    for knob in range(1, len(space.knobs)):
        yield Trial(best_rate(), knob)
    while True:
        best = max(scores, key=lambda trial: scores[trial])
        near = [Trial(rate, best.knob) for rate in space.near(best.learning_rate)]
        if all(trial in scores for trial in near):
            return
        yield next(trial for trial in near if trial not in scores)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
