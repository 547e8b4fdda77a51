"""What measured rates come to: shares of a device's peak, the batch that is worth it, the time of a whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

WORTH_IT = 1.1
"""A larger batch that is not this much faster is not worth its memory."""


@dataclass(frozen=True)
class Work:
    """What a run asks for in all."""

    images: int
    calls: int
    """Model calls an image without a gradient: H, and those that take old log-probabilities again."""
    transitions: int
    """Transitions trained on, inner epochs counted."""


@dataclass(frozen=True)
class UnitCosts:
    """Seconds of one unit of each kind of work, at the batch sizes that were measured."""

    call: float
    """A model call for one image, without a gradient."""
    decode: float
    """Of one image."""
    reward: float
    """Of one image."""
    transition: float
    """Forward, backward and its part of the optimizer step."""


def project_seconds(work: Work, costs: UnitCosts) -> float:
    """Add up what some work takes, one thing after the other; evaluations and files are not in it."""
    an_image = work.calls * costs.call + costs.decode + costs.reward
    return work.images * an_image + work.transitions * costs.transition


def share_of_peak(flops: float, seconds: float, peak: float) -> float:
    """Return the share, 0 … 1, of a peak in FLOP/s that work of some FLOPs reached in some seconds."""
    return flops / seconds / peak


def choose_batch(rates: Mapping[int, float]) -> int:
    """Return the smallest batch size whose rate (units a second) the best one does not beat by `WORTH_IT`."""
    best = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate * WORTH_IT >= best)


def sweep_batches(measure: Callable[[int], float | None], wanted: Sequence[int] | None) -> Iterable[int]:
    """Measure batch sizes in turn, and return those that could be measured.

    `measure`: from a batch size to its rate; None where there is no memory for it. `wanted`: the sizes; None for
    1, 2, 4 … until memory ends, or two in a row are not `WORTH_IT` times the best before them: one may be bad luck.
    """
    best, batch, in_vain = 0.0, 1, 0
    sizes = iter(wanted) if wanted is not None else None
    while True:
        if sizes is not None:
            following = next(sizes, None)
            if following is None:
                return
            batch = following
        rate = measure(batch)
        if rate is None:
            return
        yield batch
        in_vain = 0 if rate >= WORTH_IT * best else in_vain + 1
        if sizes is None and in_vain == 2:
            return
        best, batch = max(best, rate), 2 * batch


def largest_that_fits(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest size from 1 to `limit` that fits, by doubling and then bisection; 0 where none does.

    `fits` is asked about each size at most once, and is taken to hold for all sizes below one for which it holds.
    """
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good
