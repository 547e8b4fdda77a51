"""Measure a run four times as long as the preset's, and what KL, decay and averaging change.

    python -m examples.stability.measure base kl-0.1 decay

A run's folder is `runs/stability/NAME`; one that is there goes on or is only measured.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from examples.benchmark.classifier import recognise
from examples.few_steps.measure import draw
from rlcm_cli.core.ema import average_weights
from rlcm_cli.models.lora import load_lora
from rlcm_cli.phases.evaluate import plan_evaluation
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.checkpoint import read_weights
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import IterationMetrics, read_metrics

RUNS = Path("runs/stability")
ITERATIONS = 320
SEED = 31
WINDOW = 40
KEPT = 20
DECAY = 0.9
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "kl-0.1": ("--kl", "0.1"),
    "decay": (f"--set=train.lr_decay_iterations={ITERATIONS}",),
}


def run_loop(name: str) -> RunLayout:
    """Run a variant to its end, as a user would."""
    folder = RUNS / name
    options = [
        "--task",
        "compression",
        "--seed",
        str(SEED),
        "--iterations",
        str(ITERATIONS),
        "--monitor",
        "emoji_clip",
    ]
    options += ["--keep-rollouts", "1", "--keep-checkpoints", str(KEPT), "--quiet", "--run", str(folder)]
    subprocess.run([sys.executable, "-m", "rlcm_cli", "loop", *options, *VARIANTS[name]], check=True)
    return RunLayout(folder)


def print_windows(name: str, layout: RunLayout) -> None:
    """Print the means over windows of iterations."""
    rows = read_metrics(layout)
    for first in range(0, len(rows), WINDOW):
        part = rows[first : first + WINDOW]

        def mean(read: str, key: str, rows: list[IterationMetrics] = part) -> float:
            return statistics.mean(getattr(row, read)[key] for row in rows)

        print(
            f"| {name} | {first + 1}–{first + len(part)} | {statistics.mean(row.reward_mean for row in part):.2f} "
            f"| {-mean('rewards', 'compressibility'):.2f} | {mean('rewards', 'recognition'):.2f} "
            f"| {mean('monitored', 'emoji_clip'):.1f} |"
        )


def print_images(name: str, images: Tensor, prompts: list[str]) -> None:
    """Print the mean size of fixed images, and the share that the independent classifier recognises."""
    kilobytes = statistics.mean(jpeg_kilobytes(image) for image in images)
    print(f"| {name} | {kilobytes:.2f} | {recognise(images, prompts).float().mean().item():.1%} |")


def draw_average(layout: RunLayout) -> tuple[Tensor, list[str]]:
    """Draw the fixed images with the moving average, at `DECAY`, of the newest `KEPT` checkpoints."""
    run = open_run(layout.root)
    numbers = layout.checkpoints()[-KEPT:]
    average = read_weights(layout, numbers[0])
    for number in numbers[1:]:
        average = average_weights(average, read_weights(layout, number), DECAY)
    model = load_policy_model(run.config)
    load_lora(model, average, "average")
    plan = plan_evaluation(run.config, run.prompts)
    images = draw(run, model, plan, run.config.sample.steps)
    return images, [fixed.prompt for fixed in plan]


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(VARIANTS))
    layouts = {name: run_loop(name) for name in parser.parse_args().names}
    print("| run | iterations | reward | kB | recognition | emoji_clip, monitored |\n|---|---|---|---|---|---|")
    for name, layout in layouts.items():
        print_windows(name, layout)
    print("\n| fixed images | kB | recognised |\n|---|---|---|")
    for name, layout in layouts.items():
        for number in (0, layout.checkpoints()[-1]):
            evaluation = read_evaluation(layout, number)
            print_images(f"{name}, checkpoint {number}", torch.from_numpy(evaluation.images), evaluation.prompts)
        print_images(f"{name}, average of the last {KEPT}", *draw_average(layout))


if __name__ == "__main__":
    main()
