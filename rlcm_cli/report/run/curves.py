"""One picture of a run: each reward over the iterations, trained on or only monitored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from rlcm_cli.config import parse_config
from rlcm_cli.report.private import name_reward
from rlcm_cli.report.run.bands import FREE, Bounds, band
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import IterationMetrics, read_metrics
from rlcm_cli.store.reward_versions import comparable_rows
from rlcm_cli.store.run import read_config

PANEL_INCHES = (7.0, 1.9)
TRAINED, MONITORED = "#0b6fa4", "#c1582a"  # distinct to people who cannot tell red from green, too


def write_curves(layout: RunLayout, bounds: Bounds = MappingProxyType({})) -> Path | None:
    """Plot mean and spread over images of every reward; return the path, None before the second iteration.

    Where rewards are summed as they are, their weighted sum comes first.
    """
    metrics = comparable_rows(read_metrics(layout))
    if len(metrics) < 2:
        return None
    path = layout.root / "rewards.png"
    summed = parse_config(read_config(layout)).combine == "sum"
    replace_bytes(path, plot_curves(metrics, summed=summed, bounds=bounds))
    return path


def plot_curves(metrics: Sequence[IterationMetrics], *, summed: bool, bounds: Bounds = MappingProxyType({})) -> bytes:
    """Plot the rewards of two iterations or more; return the PNG.

    `summed`: whether the rewards are summed as they are, so that their sum has a unit and gets a panel. A band of one
    standard deviation ends where a reward can have no value.
    """
    # Not pyplot, which would look for a display.
    from matplotlib.figure import Figure

    trained = list(metrics[-1].rewards)
    monitored = list(dict.fromkeys(name for row in metrics for name in row.monitored))
    panels = [(name_reward(name), TRAINED, _series(metrics, name), bounds.get(name, FREE)) for name in trained]
    panels += [
        (f"{name_reward(name)} (monitored)", MONITORED, _series(metrics, name), bounds.get(name, FREE))
        for name in monitored
        if name not in trained
    ]
    # The sum of rewards that are normalised separately has no unit: the largest would be all that one sees.
    if len(trained) > 1 and summed:
        total = [(row.checkpoint, row.reward_mean, row.reward_std) for row in metrics]
        panels.insert(0, ("weighted sum of the trained rewards", TRAINED, total, FREE))

    figure = Figure(figsize=(PANEL_INCHES[0], PANEL_INCHES[1] * len(panels) + 0.4), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (title, colour, rows, ends) in zip(axes, panels, strict=True):
        numbers, means, spreads = zip(*rows, strict=True)
        low, high = zip(*(band(*of_row, bounds=ends) for of_row in zip(means, spreads, strict=True)), strict=True)
        axis.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(numbers, means, color=colour, linewidth=1.4)
        axis.set_title(title, loc="left", fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("iteration; band: one standard deviation over images", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _series(metrics: Sequence[IterationMetrics], name: str) -> list[tuple[int, float, float]]:
    """Return (iteration, mean, standard deviation) where the reward was scored."""
    return [(row.checkpoint, row.scored[name], row.reward_stds[name]) for row in metrics if name in row.scored]
