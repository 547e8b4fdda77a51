"""Train the embedded model with few calls, its last one left alone, drawn with noise, or trained by back-propagation.

    python -m examples.last_step.measure --steps 2 --steps 4 --steps 8 --seed 1 --seed 2

Each cell is `rlcm loop` as a user would start it. Both rewards are differentiable; the images measured are those of
the first and last evaluation: held-out seeds, drawn without noise at the last call.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from examples.frontier.measure import recognised, run_loop
from examples.rewards.measure import compare, judged_scores
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.metrics import read_metrics

COMMON = [
    *("--reward", "mirror_symmetry=1", "--reward", "recognition=2"),
    *("--set", "evaluate.images_per_prompt=8", "--set", "prompts.held_out_fraction=0.3", "--quiet"),
]
MODES: dict[str, list[str]] = {
    "deterministic": [],
    "noise 0.1": ["--set", "last_step.mode=noise"],
    "backprop x 1": ["--set", "last_step.mode=backprop", "--set", "last_step.weight=1"],
    "backprop x 30": ["--set", "last_step.mode=backprop", "--set", "last_step.weight=30"],
}


def measure_cell(folder: Path) -> dict[str, Any]:
    """Compare the first and the last evaluation of a run: both rewards, their sum, and the recognised share."""
    layout = RunLayout(folder)
    before, after = (read_evaluation(layout, layout.evaluations()[index]) for index in (0, -1))
    rows = read_metrics(layout)
    return {
        "iterations": layout.checkpoints()[-1],
        "train_seconds": sum(row.train_seconds for row in rows),
        "forwards": sum(row.forwards for row in rows),
        "images": len(after.prompts),
        "score": compare(*judged_scores(open_run(folder).config, before, after)),
        "recognised": compare(recognised(before).float(), recognised(after).float()),
        "rewards": {
            name: compare(torch.from_numpy(before.rewards[name]), torch.from_numpy(after.rewards[name]))
            for name in after.rewards
        },
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Lay the results in a Markdown table, a line a cell, means over its seeds."""
    cells: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for result in results.values():
        cells.setdefault((result["steps"], result["mode"]), []).append(result)
    lines = [
        "| H | last step | seeds | gain of what is trained for | mirror_symmetry | recognition | recognised | s/it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (steps, mode), found in sorted(cells.items(), key=lambda cell: (cell[0][0], list(MODES).index(cell[0][1]))):
        gains = [result["score"]["after"] - result["score"]["before"] for result in found]
        seconds = statistics.mean(result["train_seconds"] / result["iterations"] for result in found)
        parts = [_change([result["rewards"][name] for result in found]) for name in found[0]["rewards"]]
        lines.append(
            f"| {steps} | {mode} | {len(found)} | {statistics.mean(gains):+.2f} "
            f"({', '.join(f'{gain:+.2f}' for gain in gains)}) | {' | '.join(parts)} | "
            f"{_change([result['recognised'] for result in found])} | {seconds:.1f} |"
        )
    return "\n".join(lines)


def _change(figures: list[dict[str, float]]) -> str:
    before, after = (statistics.mean(figure[key] for figure in figures) for key in ("before", "after"))
    return f"{before:.3f} → {after:.3f}"


def main() -> None:
    """Run what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="append", type=int, required=True)
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--seed", action="append", type=int, required=True)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("runs/last_step"))
    arguments = parser.parse_args()

    path = arguments.out / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in arguments.seed:
        for steps in arguments.steps:
            for mode in arguments.mode or MODES:
                name = f"{mode}, {steps} steps, seed {seed}"
                if name in results:
                    continue
                folder = arguments.out / name.replace(", ", "-").replace(" ", "-")
                options = ["--steps", str(steps), "--iterations", str(arguments.iterations), *COMMON, *MODES[mode]]
                seconds = run_loop("mirror_symmetry", seed, folder, options)
                results[name] = {
                    "mode": mode,
                    "steps": steps,
                    "seed": seed,
                    "seconds": seconds,
                    **measure_cell(folder),
                }
                path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
