"""Train an embedded model for rewards, and measure on held-out seeds and prompts what became of them.

    python -m examples.rewards.measure alignment mirror two_rewards --seed 401 --seed 402 --seed 403
    python -m examples.rewards.measure compression mirror --model emoji-sprint --seed 401 --seed 402 --seed 403

Each run is `rlcm loop` as a user would start it; the images are those of its first and last evaluation. The
standard error is that of the mean difference of the image pairs (same prompt, same seed, before and after). The
share of recognised images comes from an independent classifier that is in no reward and in no stopping rule.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.benchmark.classifier import recognise
from examples.frontier.measure import run_loop
from rlcm_cli.config import Config
from rlcm_cli.models.embedded import EMBEDDED
from rlcm_cli.runs.hacking import find_hacking, trained_progress
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.evaluations import Evaluation, read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics

OF_45_PROMPTS = ["--set", "evaluate.images_per_prompt=32", "--set", "prompts.held_out_fraction=0.3"]
"""1,440 images a run, 448 of them of the 14 prompts that are kept out of training; of `alignment` 1,440 and 480."""

RUNS: dict[str, tuple[str, list[str]]] = {
    "compression": ("compression", OF_45_PROMPTS),
    "incompression": ("incompression", OF_45_PROMPTS),
    "alignment": (
        "prompt_image_alignment",
        ["--set", "evaluate.images_per_prompt=12"],
    ),
    "mirror": ("mirror_symmetry", OF_45_PROMPTS),
    "two_rewards": (
        "mirror_symmetry",
        ["--reward", "mirror_symmetry=1", "--reward", "recognition=2", "--iterations", "60", *OF_45_PROMPTS],
    ),
    "hacking": (
        "incompression",
        ["--reward", "incompressibility", "--monitor", "emoji_clip", "--on-hacking", "stop", *OF_45_PROMPTS],
    ),
}
"""Name → task and further options."""


def measure_run(folder: Path) -> dict[str, Any]:
    """Compare the first and the last evaluation of a run: every reward, and the recognised share."""
    layout = RunLayout(folder)
    before, after = (read_evaluation(layout, layout.evaluations()[index]) for index in (0, -1))
    right = [recognise(torch.from_numpy(one.images), one.prompts).float() for one in (before, after)]
    figures = {
        name: (torch.from_numpy(before.rewards[name]), torch.from_numpy(after.rewards[name])) for name in after.rewards
    }
    held_out = torch.from_numpy(after.held_out)
    scores = judged_scores(open_run(folder).config, before, after)
    return {
        "iterations": layout.checkpoints()[-1],
        "alarms": first_alarms(folder),
        "train_seconds": sum(row.train_seconds for row in read_metrics(layout)),
        "images": len(after.prompts),
        "held_out_images": int(held_out.sum()),
        "recognised": compare(*right),
        "recognised_held_out": compare(right[0][held_out], right[1][held_out]),
        "score": compare(*scores),
        "score_held_out": compare(scores[0][held_out], scores[1][held_out]),
        "rewards": {name: compare(*pair) for name, pair in figures.items()},
        "rewards_held_out": {
            name: compare(first[held_out], last[held_out]) for name, (first, last) in figures.items()
        },
    }


def judged_scores(config: Config, before: Evaluation, after: Evaluation) -> tuple[Tensor, Tensor]:
    """Give what the run is trained for, of each image: its rewards by their weights, in standard deviations.

    The deviations are those of the images before, so that training with `combine = "normalised"` and this count alike.
    """
    (task,) = config.joint_tasks().values()
    first, last = (
        sum(w / before.rewards[n].std(ddof=1) * e.rewards[n] for n, w in task.rewards.items()) for e in (before, after)
    )
    return torch.from_numpy(first), torch.from_numpy(last)


def first_alarms(folder: Path) -> dict[str, int]:
    """Return the iteration after which each monitored reward first raised the alarm, if it ever did."""
    run = open_run(folder)
    metrics = read_metrics(run.layout)
    alarms: dict[str, int] = {}
    trained = trained_progress(metrics, run.config)
    for count in range(1, len(metrics) + 1):
        for name in find_hacking(metrics[:count], run.config.monitor, trained[:count]):
            alarms.setdefault(name, count)
    return alarms


def compare(before: Tensor, after: Tensor) -> dict[str, float]:
    """Give both means, and the standard error of the mean difference of pairs."""
    difference = (after - before).double()
    return {
        "before": before.double().mean().item(),
        "after": after.double().mean().item(),
        "standard_error": difference.std().item() / math.sqrt(len(difference)),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Lay the results in a Markdown table, a line a reward of a run."""
    lines = [
        "| run | reward | held-out seeds | held-out prompts | recognised |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        share = result["recognised"]
        alarm = ", ".join(f"alarm at iteration {at} ({monitored})" for monitored, at in result["alarms"].items())
        rows = {"what is trained for": result["score"], **result["rewards"]}
        held_out_rows = {"what is trained for": result["score_held_out"], **result["rewards_held_out"]}
        for reward, figure in rows.items():
            held_out = held_out_rows[reward]
            lines.append(
                f"| {name} | {reward} | {_change(figure)} | {_change(held_out)} | "
                f"{share['before']:.1%} → {share['after']:.1%} (± {share['standard_error']:.1%}) {alarm} |"
            )
    return "\n".join(lines)


def _change(figure: dict[str, float]) -> str:
    errors = (figure["after"] - figure["before"]) / figure["standard_error"] if figure["standard_error"] else 0.0
    return f"{figure['before']:.3f} → {figure['after']:.3f} ({errors:+.1f} SE)"


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", choices=RUNS)
    parser.add_argument("--seed", action="append", type=int, required=True)
    parser.add_argument("--model", choices=EMBEDDED, default="emoji-lcm")
    parser.add_argument("--out", type=Path, default=Path("runs/rewards"))
    arguments = parser.parse_args()

    path = arguments.out / "results.json"
    for run in arguments.run:
        task, options = RUNS[run]
        for seed in arguments.seed:
            folder = arguments.out / f"{run}-{seed}"
            seconds = run_loop(task, seed, folder, [*options, "--model", arguments.model])
            # Read again: several of these may run side by side.
            results = json.loads(path.read_text()) if path.exists() else {}
            results[f"{run}, seed {seed}"] = {"seconds": seconds, **measure_run(folder)}
            path.write_text(json.dumps(dict(sorted(results.items())), indent=1))
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
