"""Fine-tune from Python, without the command line: one iteration phase by phase, then the loop.

python examples/from_python/train.py --iterations 20
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rlcm_cli.config import resolve_config
from rlcm_cli.events import Evaluated, Event, IterationTrained
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.report.run.before_after import write_pairs
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run


def redness(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
    """Give each image of a batch, uint8 [B, 3, H, W], how much more red than green and blue it is, −1 to 1."""
    red, green, blue = images.float().div(255).unbind(1)
    return (red - (green + blue) / 2).mean((1, 2))


def fine_tune(folder: Path, assignments: Iterable[str] = ()) -> Path | None:
    """Train into a run directory; `assignments` are those of --set. Gives the picture of before and after."""
    # A run is told by its configuration, which other processes read, so the reward is named and not passed: this file.
    here = f"{os.path.relpath(__file__)}:redness"
    config = resolve_config(
        ["compression"],
        assignments=list(assignments),
        flags={"rewards": {here: 1.0, "recognition": 1.0}},
    )
    run = create_run(folder, config)
    model, scorers = load_policy_model(config), load_scorers(run)

    # A phase is a generator of events, and works while they are taken.
    for phase in (sample(run, model), score(run, scorers), train(run, model)):
        for event in phase:
            show(event)
    # The loop makes the iterations that are missing, with the same functions.
    for event in loop(run, model, scorers):
        show(event)
    return write_pairs(run.layout)


def show(event: Event) -> None:
    """Print what is worth a line."""
    match event:
        case IterationTrained(number, metrics):
            means = ", ".join(f"{name.split(':')[-1]} {mean:.3f}" for name, mean in metrics.rewards.items())
            print(f"{number}: {means}")
        case Evaluated(checkpoint, on_training, on_held_out):
            held_out = "" if on_held_out is None else f", held-out prompts {on_held_out:.3f}"
            print(f"fixed images of checkpoint {checkpoint}: training prompts {on_training:.3f}{held_out}")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/from_python"))
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    picture = fine_tune(arguments.run, [f"runtime.iterations={arguments.iterations}"])
    print(f"the same seeds before and after: {picture}")


if __name__ == "__main__":
    main()
