"""Long runs side by side: each trained reward and each monitored one, as means over windows of iterations.

python -m examples.hyperparameters.plot runs/stability/base runs/stability/kl-0.1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's, told apart with every kind of colour vision."""
DASHES = ("-", "--", "-.", ":")


def average(run: Path, window: int) -> dict[str, list[float]]:
    """Give each reward's mean over each full window of iterations, "reward" being what is trained for."""
    rows = [{"reward": row.reward_mean, **row.rewards, **row.monitored} for row in read_metrics(RunLayout(run))]
    starts = range(0, len(rows) - window + 1, window)
    return {name: [sum(row[name] for row in rows[i : i + window]) / window for i in starts] for name in rows[0]}


def plot(curves: dict[str, dict[str, list[float]]], window: int) -> Figure:
    """Draw a panel a reward, a line a run."""
    names = list(next(iter(curves.values())))
    figure = Figure(figsize=(3.2 * len(names), 2.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for (run, means), colour, dashes in zip(curves.items(), COLOURS, DASHES, strict=False):
            middles = [window * (number + 0.5) for number in range(len(means[name]))]
            axis.plot(middles, means[name], dashes, color=colour, label=run)
        axis.set_title(name, loc="left", fontsize=9)
        axis.set_xlabel("iteration", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    """Read the command line, print the means and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--window", type=int, default=40, help="iterations that are averaged")
    parser.add_argument("--out", type=Path, default=Path("stability.png"))
    arguments = parser.parse_args()
    curves = {run.name: average(run, arguments.window) for run in arguments.runs}
    for run, means in curves.items():
        for name, values in means.items():
            print(f"{run:12} {name:18}", *(f"{value:7.2f}" for value in values))
    plot(curves, arguments.window).savefig(arguments.out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
