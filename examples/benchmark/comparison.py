"""Methods side by side on one task and model: the tables of a plan whose methods are tuned.

n is the number of seeds of a row. Intervals are of 95 %, by Student's t over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from examples.benchmark.plan import Tuning
from examples.benchmark.results import final_reward, find_crossing, reward_after, reward_at
from examples.benchmark.tuning import choose, is_at_edge
from rlcm_cli.core.seed_interval import CONFIDENCE, mean_interval

Results = Sequence[Mapping[str, Any]]
"""Of one method, a seed each."""
REFERENCE = "ppo"
"""What the other methods are compared with."""


@dataclass(frozen=True)
class Difference:
    """How far a method's trained reward is above that of the reference, on the same seeds."""

    mean: float
    interval: tuple[float, float] | None
    """None for a single seed."""
    seeds: int

    def verdict(self) -> str:
        """Return in words which is better."""
        if self.interval is None:
            return "one seed"
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


def pair_differences(
    methods: Mapping[str, Results], value: Callable[[Mapping[str, Any]], float], reference: str = REFERENCE
) -> dict[str, Difference]:
    """Compare each method with the reference, paired by seed.

    The intervals hold for all of the comparisons at once (Bonferroni).
    """
    base = {one["seed"]: value(one) for one in methods[reference]}
    others = [name for name in methods if name != reference]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    found = {}
    for name in others:
        gaps = [value(one) - base[one["seed"]] for one in methods[name] if one["seed"] in base]
        if gaps:
            found[name] = Difference(statistics.fmean(gaps), mean_interval(gaps, confidence), len(gaps))
    return found


def score_table(methods: Mapping[str, Results], words: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Lay out what each method reached with its processor time, and what it paid for it; before training first."""
    header = ["", "n", "trained reward", "on held-out prompts", "JPEG, kB", "recognised, %", "second judge"]
    header += ["diversity", "coverage, %", "KL"]
    every = [one for results in methods.values() for one in results]
    rows = [["before training", f"{len({one['seed'] for one in every})} seeds", *_score_cells(_one_a_seed(every), 0)]]
    rows += [[words[name], str(len(own)), *_score_cells(own, -1)] for name, own in methods.items()]
    return header, rows


def cost_table(methods: Mapping[str, Results], words: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Lay out what each method needed for the target, and its reward at an equal number of queries."""
    queries = min(one["points"][-1]["queries"] for results in methods.values() for one in results)
    header = ["", "n", "images drawn", "processor s to the target", "queries to it", "reached it"]
    header += [f"trained reward after {queries:,} queries"]
    rows = []
    for name, results in methods.items():
        crossings = [crossing for one in results if (crossing := find_crossing(one))]
        rows.append(
            [
                words[name],
                str(len(results)),
                f"{statistics.fmean(one['points'][-1]['queries'] for one in results):,.0f}",
                show_range([crossing.processor for crossing in crossings]),
                show_range([crossing.queries for crossing in crossings]),
                f"{len(crossings)} of {len(results)}",
                show_mean([reward_after(one, "queries", queries) for one in results], 2),
            ]
        )
    return header, rows


def difference_table(methods: Mapping[str, Results], words: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Lay out how each method compares with the reference: after the same processor time, and the same queries."""
    queries = min(one["points"][-1]["queries"] for results in methods.values() for one in results)
    by_time = pair_differences(methods, final_reward)
    by_queries = pair_differences(methods, lambda one: reward_after(one, "queries", queries))
    header = [f"against {words[REFERENCE]}", "n", "at equal processor time", "", f"after {queries:,} queries", ""]
    return header, [
        [words[name], str(found.seeds), *_difference_cells(found), *_difference_cells(by_queries[name])]
        for name, found in by_time.items()
    ]


def steps_table(methods: Mapping[str, Results], words: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Lay out the trained reward and the recognised share of images that are drawn in other numbers of steps."""
    counts = next(iter(methods.values()))[0]["finals"]["steps"]
    header = ["", "n", *(f"{count} step{'s' * (count != '1')}" for count in counts)]
    rows = []
    for name, results in methods.items():
        cells = []
        for count in counts:
            images = [{"all": one["finals"]["steps"][count]} for one in results]
            rewards = [reward_at(one, point) for one, point in zip(results, images, strict=True)]
            shares = [100 * point["all"]["recognised"] for point in images]
            cells.append(f"{show_mean(rewards, 2)}; {show_mean(shares, 0)} %")
        rows.append([words[name], str(len(results)), *cells])
    return header, rows


def tuning_table(
    tunings: Sequence[tuple[Tuning, Mapping[Any, float]]], words: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Lay out every trial: the trained reward by learning rate, for each value of the knob; the best one in bold."""
    rows = []
    for tuning, scores in tunings:
        if not scores:
            continue
        best = choose(tuning.space, scores)
        for number, knob in enumerate(tuning.space.knobs):
            tried = sorted((trial for trial in scores if trial.knob == number), key=lambda one: one.learning_rate)
            shown = [f"{trial.learning_rate:g}: {_show_score(scores[trial])}" for trial in tried]
            shown = [f"**{text}**" if trial == best else text for trial, text in zip(tried, shown, strict=True)]
            ending = "not finished" if best is None else "at the edge" if is_at_edge(tuning.space, scores) else ""
            rows.append(
                [
                    tuning.cells[0].model if number == 0 else "",
                    words[tuning.cells[0].method] if number == 0 else "",
                    ", ".join(f"`{setting}`" for setting in knob),
                    ", ".join(shown),
                    ending if number == 0 else "",
                ]
            )
    return ["model", "method", "knob", "learning rate: trained reward", ""], rows


def show_mean(values: Sequence[float], digits: int) -> str:
    """Write a mean, and half of its interval where there are several values."""
    interval = mean_interval(values)
    mean = f"{statistics.fmean(values):.{digits}f}".replace("-", "−")
    return mean if interval is None else f"{mean} ± {(interval[1] - interval[0]) / 2:.{digits}f}"


def show_range(values: Sequence[float]) -> str:
    """Write a median and, in brackets, the lowest and the highest."""
    if not values:
        return "–"
    middle = f"{statistics.median(values):,.0f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.0f} to {max(values):,.0f})"


def _one_a_seed(results: Results) -> Results:
    return list({one["seed"]: one for one in results}.values())


def _score_cells(results: Results, place: int) -> list[str]:
    """Return the cells of the first evaluation (place 0) or of the last one (−1)."""
    points, finals = [one["points"][place] for one in results], [one["finals"] for one in results]
    return [
        show_mean([reward_at(one, one["points"][place]) for one in results], 2),
        show_mean([reward_at(one, one["points"][place], "held_out_prompts") for one in results], 2),
        show_mean([point["all"]["kilobytes"] for point in points], 2),
        show_mean([100 * point["all"]["recognised"] for point in points], 1),
        show_mean([one["second_judge"][place] for one in finals], 1),
        show_mean([one["diversity"][place] for one in finals], 3),
        show_mean([100 * one["coverage"][place] for one in finals], 1),
        "0" if place == 0 else show_mean([one["kl"] for one in finals], 3),
    ]


def _difference_cells(found: Difference) -> list[str]:
    mean = f"{found.mean:+.2f}".replace("-", "−")
    if found.interval is None:
        return [mean, found.verdict()]
    return [f"{mean} ± {(found.interval[1] - found.interval[0]) / 2:.2f}", found.verdict()]


def _show_score(score: float) -> str:
    return "failed" if score == float("-inf") else f"{score:.2f}".replace("-", "−")
