"""Pictures of methods side by side: the reward on the way, and what it cost in recognised images."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.benchmark.results import reward_after

POINTS = 40
"""Of a mean curve."""


def draw_curves(methods: Mapping[str, Sequence[Mapping[str, Any]]], words: Mapping[str, str], path: Path) -> None:
    """Draw the trained reward against processor time and against queries, means over seeds, and each seed's end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    colours = mpl.colormaps["tab20"](range(20))
    for number, (name, results) in enumerate(methods.items()):
        colour = colours[2 * number % 20 + 2 * number // 20]
        for axis, cost in zip(axes, ("processor", "queries"), strict=False):
            end = min(one["points"][-1][cost] for one in results)
            costs = [end * step / (POINTS - 1) for step in range(POINTS)]
            means = [statistics.fmean(reward_after(one, cost, amount) for one in results) for amount in costs]
            axis.plot(costs, means, color=colour, label=f"{words[name]} (n = {len(results)})")
        axes[2].scatter(
            [one["points"][-1]["all"]["kilobytes"] for one in results],
            [100 * one["points"][-1]["all"]["recognised"] for one in results],
            color=colour,
            s=18,
        )
    firsts = [one["points"][0]["all"] for results in methods.values() for one in results]
    start = (
        statistics.fmean(point["kilobytes"] for point in firsts),
        100 * statistics.fmean(point["recognised"] for point in firsts),
    )
    axes[2].scatter(*start, color="black", marker="*", s=80)
    axes[2].annotate("before training", start, xytext=(4, -14), textcoords="offset points", ha="right", fontsize=8)
    axes[0].set(xlabel="processor time, s", ylabel="trained reward, held-out seeds (mean of seeds)")
    axes[1].set(xlabel="images drawn", ylim=axes[0].get_ylim())
    axes[2].set(xlabel="mean JPEG size at the end, kB", ylabel="recognised, % (a dot a seed)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
