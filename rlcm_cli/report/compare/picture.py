"""The picture of a comparison: the reward against each cost, a line a method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.report.compare.comparison import Comparison, Method
from rlcm_cli.report.compare.curves import find_crossing, price_at
from rlcm_cli.store.atomic import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (3.5, 3.3)
LEAST_WIDTH = 6.0
"""Inches; below that legend and footnote of a single panel have no place."""
DPI = 200

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart with every kind of colour vision; without their yellow, too light for a line."""
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (5, 1.6),
    (1.2, 1.4),
    (7, 1.6, 1.2, 1.6),
    (3, 1),
    (9, 2),
    (4, 1, 1, 1, 1, 1),
)
"""On and off, in line widths: told apart in print without colours."""

UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "queries": ((1, "queries (images scored)"), (1e3, "thousand queries (images scored)"), (1e6, "million queries")),
    "wall_seconds": ((1, "wall time, s"), (60, "wall time, min"), (3600, "wall time, h")),
    "cpu_seconds": ((1, "processor time, s"), (60, "processor time, min"), (3600, "processor time, h")),
    "forwards": ((1, "model forwards"), (1e3, "thousand model forwards"), (1e6, "million model forwards")),
}
"""Cost → units for an axis, ascending."""
LEAST_IN_UNIT = 3.0
"""An axis that ends below so many of a unit is drawn in the one before."""


def draw_comparison(comparison: Comparison, folder: Path) -> Path:
    """Draw `compare.png`: mean curves over seeds, bands from the lowest seed to the highest; return the path.

    A ring marks where a seed's own curve first reaches the target: the table has the mean of these costs.
    """
    # Not pyplot, which would look for a display.
    from matplotlib.figure import Figure

    panels = len(comparison.costs)
    width = max(LEAST_WIDTH, PANEL_INCHES[0] * panels)
    figure = Figure(figsize=(width, PANEL_INCHES[1]), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, cost in zip(axes, comparison.costs, strict=True):
        most = max(method.mean.prices[cost][-2] for method in comparison.methods)
        scale, label = choose_unit(cost, most)
        axis.axhline(comparison.target, color="0.55", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        for number, method in enumerate(comparison.methods):
            _draw_method(axis, method, number, cost, scale, comparison.target)
        axis.set_xlabel(label, fontsize=9)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"reward: {comparison.reward}", fontsize=9)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        lines,
        labels,
        loc="outside upper center",
        ncols=count_columns(labels, width),
        fontsize=9,
        frameon=False,
        handlelength=3.2,
    )
    figure.supxlabel(_explain(comparison), fontsize=7, color="0.35")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    path = folder / "compare.png"
    replace_bytes(path, buffer.getvalue())
    return path


def choose_unit(cost: str, most: float) -> tuple[float, str]:
    """Choose the unit of an axis that ends at `most`: (size of the unit, label)."""
    fitting = [unit for unit in UNITS[cost] if most >= LEAST_IN_UNIT * unit[0]]
    return (fitting or UNITS[cost][:1])[-1]


def count_columns(labels: Sequence[str], width: float) -> int:
    """Count the legend entries that fit side by side into `width` inches, at 9 points."""
    entry = 0.7 + 0.08 * max(map(len, labels))
    return max(1, min(len(labels), int(width / entry)))


def _draw_method(axis: Axes, method: Method, number: int, cost: str, scale: float, target: float) -> None:
    colour = COLOURS[number % len(COLOURS)]
    dashes = DASHES[(number + number // len(COLOURS)) % len(DASHES)]
    rewards = method.mean.rewards
    prices = [price / scale for price in method.mean.prices[cost]]
    if len(method.runs) > 1:
        seeds = list(zip(*(curve.rewards for curve in method.curves), strict=False))
        low, high = [min(values) for values in seeds], [max(values) for values in seeds]
        axis.fill_between(prices[: len(rewards)], low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
    axis.plot(
        prices[: len(rewards)],
        rewards,
        color=colour,
        linewidth=1.6,
        dashes=dashes or (None, None),
        label=method.label,
        zorder=3,
    )
    for curve in method.curves:
        reached = find_crossing(curve, target)
        if reached is not None:
            axis.plot(
                price_at(curve.prices[cost], reached) / scale,
                target,
                "o",
                markersize=5,
                markerfacecolor="white",
                markeredgecolor=colour,
                zorder=4,
            )


def _explain(comparison: Comparison) -> str:
    window = max(levels.window for method in comparison.methods for levels in method.levels)
    several = any(len(method.runs) > 1 for method in comparison.methods)
    parts = [f"mean of {window} iterations, at the start of fewer" if window > 1 else "mean of an iteration"]
    if several:
        parts += ["line: mean over seeds", "band: lowest to highest seed"]
    who = "where each seed first reaches" if several else "where a run first reaches"
    return "; ".join([*parts, f"rings: {who} {comparison.target:.4g}"]).replace("-", "−")
