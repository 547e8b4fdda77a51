"""Run tasks on the embedded model and measure reward against recognition, along each run.

python -m examples.frontier.measure --task compression --seed 101 --seed 102 --seed 103
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from examples.benchmark.classifier import recognise
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import Run, open_run
from rlcm_cli.store.evaluations import read_evaluation


def run_loop(task: str, seed: int, folder: Path, extra: list[str]) -> float:
    """Run `rlcm loop` as a user would; give the wall time of the whole command in seconds."""
    command = [sys.executable, "-m", "rlcm_cli", "loop", "--task", task, "--seed", str(seed)]
    started = time.perf_counter()
    subprocess.run([*command, "--run", str(folder), *extra], check=True)
    return time.perf_counter() - started


def measure_run(folder: Path, every: int) -> list[dict[str, Any]]:
    """Evaluate every so many checkpoints of a run, and the last: checkpoint, kB, recognised share, images."""
    run = open_run(folder)
    numbers = run.layout.checkpoints()
    wanted = sorted({number for number in numbers if number % every == 0} | {numbers[-1]})
    return [measure_checkpoint(run, number) for number in draw_checkpoints(run, wanted)]


def draw_checkpoints(run: Run, numbers: list[int]) -> list[int]:
    """Draw the fixed held-out images with some checkpoints of a run."""
    model, rewards = load_policy_model(run.config), load_scorers(run)
    for number in numbers:
        for _ in evaluate(run, model, rewards, number):
            pass
    return numbers


def measure_checkpoint(run: Run, number: int) -> dict[str, Any]:
    """Measure the images of one evaluation."""
    evaluation = read_evaluation(run.layout, number)
    images = torch.from_numpy(evaluation.images)
    found = recognise(images, evaluation.prompts).float()
    return {
        "checkpoint": number,
        "kilobytes": sum(map(jpeg_kilobytes, images)) / len(images),
        "recognised": found.mean().item(),
        "recognised_held_out_prompts": found[torch.from_numpy(evaluation.held_out)].mean().item(),
        "images": len(evaluation.images),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Lay the first and last figures of each run in a Markdown table."""
    lines = ["| run | wall time | JPEG kB | change | recognised |", "|---|---|---|---|---|"]
    for result in results:
        first, last = result["points"][0], result["points"][-1]
        change = last["kilobytes"] / first["kilobytes"] - 1
        lines.append(
            f"| {result['name']} | {result['seconds']:.0f} s | {first['kilobytes']:.2f} → {last['kilobytes']:.2f} "
            f"| {change:+.1%} | {first['recognised']:.1%} → {last['recognised']:.1%} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw recognised share against JPEG size, a line a run from the base model on."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    colours = {name: f"C{index}" for index, name in enumerate(sorted({r["label"] for r in results}))}
    for result in results:
        points = result["points"]
        axes.plot(
            [point["kilobytes"] for point in points],
            [100 * point["recognised"] for point in points],
            marker="o",
            markersize=3,
            color=colours[result["label"]],
        )
    for label, colour in colours.items():
        axes.plot([], [], color=colour, marker="o", label=label)
    axes.axhline(80, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="mean JPEG size, kB (quality 95)", ylabel="recognised, %", ylim=(0, 101))
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--seed", action="append", type=int, required=True)
    parser.add_argument("--plain", action="store_true", help="the task's own reward alone, without the judge")
    parser.add_argument("--every", type=int, default=20, help="iterations between two measured checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("extra", nargs="*", help="after --: passed on to rlcm loop")
    arguments = parser.parse_args()

    path = arguments.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    for task in arguments.task:
        own_reward = {"compression": "compressibility", "incompression": "incompressibility"}[task]
        extra = ["--set", f"rewards={{ {own_reward} = 1.0 }}"] if arguments.plain else []
        label = f"{task}, plain" if arguments.plain else task
        for seed in arguments.seed:
            name = f"{label}, seed {seed}"
            folder = arguments.out / name.replace(", ", "-").replace(" ", "-")
            seconds = run_loop(task, seed, folder, [*extra, *arguments.extra])
            result = {"name": name, "label": label, "seconds": seconds, "points": measure_run(folder, arguments.every)}
            results = [other for other in results if other["name"] != name] + [result]
            path.write_text(json.dumps(results, indent=1))
    print(table(results))
    plot(results, arguments.out / "frontier.png")


if __name__ == "__main__":
    main()
