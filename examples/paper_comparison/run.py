"""RLCM, DDPO, REBEL and RWR on the same task, prompts and rewards, with the embedded models.

    python -m examples.paper_comparison.run --task compression --method rlcm --method ddpo

Each method first tries its learning rates on a seed of its own, for a few iterations; the rate with the best mean
reward over the last of them is then used for every reported seed. Runs are those of `rlcm loop`, under
`runs/paper_comparison/`; started again, the script goes on where it was, and finished runs cost nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RUNS = Path("runs/paper_comparison")
SWEEP_SEED = 11
SEEDS = (21, 22, 23)
RATES = (3e-4, 1e-3, 3e-3)
LAST = 5
"""Iterations at the end of a sweep whose rewards are averaged."""


@dataclass(frozen=True)
class Method:
    """How a method differs from the task's preset.

    Attributes:
        options: Of `rlcm loop`.
        sweep_iterations: For each learning rate.
        iterations: For each reported seed.
    """

    options: Sequence[str]
    sweep_iterations: int
    iterations: int


TASKS = {
    # The paper's reward alone: what it ends in shows in the monitored classifier.
    "compression": ("--task=compression", "--reward=compressibility", "--monitor=recognition"),
    "incompression": ("--task=incompression", "--reward=incompressibility", "--monitor=recognition"),
    "alignment": (
        "--task=prompt_image_alignment",
        "--last-step=deterministic",
        "--set=sample.samples=64",
        "--set=sample.batch_size=64",
        "--set=train.minibatch_size=64",
    ),
}

# What the presets had when this was measured.
ALONE = ("--set=sample.group_size=1", "--set=train.advantages=per-prompt")
ALL_ACTIONS = (*ALONE, "--set=train.actions=[0,1,2]")

METHODS = {
    "rlcm": Method(ALL_ACTIONS, 20, 60),
    # DDPO's own clip of advantages and gradients (arXiv 2305.13301); 20 DDIM steps of the LCM's teacher.
    "ddpo": Method(
        (
            *ALONE,
            "--model=emoji-diffusion",
            "--steps=20",
            "--set=sampler.eta=1.0",
            "--set=train.advantage_clip=5.0",
            "--set=train.max_grad_norm=1.0",
        ),
        10,
        30,
    ),
    "rebel": Method(("--objective=rebel", "--set=sample.group_size=2", "--set=train.advantages=per-prompt"), 20, 30),
    "rwr": Method((*ALL_ACTIONS, "--objective=rwr", "--set=objective.beta=0.2"), 20, 30),
    "rwr-sparse": Method((*ALL_ACTIONS, "--objective=rwr-sparse"), 20, 30),
}


def train(run: Path, task: str, method: Method, rate: float, seed: int, iterations: int) -> None:
    """Run `rlcm loop` to its end."""
    command = [sys.executable, "-m", "rlcm_cli", "loop", *TASKS[task], "--run", str(run), *method.options]
    command += [f"--set=train.learning_rate={rate!r}", f"--seed={seed}", f"--iterations={iterations}"]
    subprocess.run([*command, "--keep-rollouts=1", "--keep-checkpoints=1", "--quiet"], check=True)


def read_rewards(run: Path) -> list[float]:
    """Read the mean training reward of each iteration."""
    return [json.loads(line)["reward_mean"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def choose_rate(task: str, name: str) -> float:
    """Try the learning rates of a method, and give the best; all results are kept in `rates.json`."""
    method, found = METHODS[name], {}
    for rate in RATES:
        run = RUNS / "sweep" / f"{task}-{name}-{rate:.0e}"
        train(run, task, method, rate, SWEEP_SEED, method.sweep_iterations)
        found[rate] = statistics.mean(read_rewards(run)[-LAST:])
    best = max(found, key=lambda rate: found[rate])
    file = RUNS / "rates.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known[f"{task} {name}"] = {"chosen": best, "reward": {f"{rate:.0e}": value for rate, value in found.items()}}
    file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return best


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="compression")
    parser.add_argument("--method", action="append", choices=list(METHODS), required=True)
    parser.add_argument("--seed", action="append", type=int, help=f"default: {', '.join(map(str, SEEDS))}")
    arguments = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in arguments.method:
        rate = choose_rate(arguments.task, name)
        print(f"{arguments.task}, {name}: learning rate {rate:.0e}", flush=True)
        for seed in arguments.seed or SEEDS:
            run = RUNS / f"{arguments.task}-{name}-{seed}"
            train(run, arguments.task, METHODS[name], rate, seed, METHODS[name].iterations)
            print(f"{run}: {statistics.mean(read_rewards(run)[-LAST:]):.3f}", flush=True)


if __name__ == "__main__":
    main()
