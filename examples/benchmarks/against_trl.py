"""rlcm against TRL's DDPOTrainer: the same model, prompts, reward, DDIM steps and LoRA, on the CPU.

    python -m venv TRLENV && TRLENV/bin/pip install -r examples/benchmarks/requirements-trl.txt
    OMP_NUM_THREADS=1 python -m examples.benchmarks.against_trl --trl-python TRLENV/bin/python

Both sides load the pipeline folder of `emoji-diffusion` once, in a process each, and take turns: an iteration of
sampling, scoring and training here, then an epoch there. Classifier-free guidance in training too, all timesteps
trained, LoRA of rank 4 on the attention. Four settings:

    own         each with its own batch sizes: those of rlcm's preset; those of TRL's example script (6 and 3)
    defaults    the same, TRL with the defaults of its DDPOConfig (1 and 1)
    published   both with those of TRL's example script
    large       both with 48, for sampling and training

Prints processor seconds an image of sampling and of training, and the ratio of their sums, with the range over the
rounds. Start-up, the first round and scoring are left out; rlcm's files and checkpoints are in, TRL's are not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.benchmarks.costs import COLUMNS, Cost, describe_machine, print_table, summarise, table_rows, write_json
from examples.benchmarks.rlcm_side import RlcmSide
from rlcm_cli.config import Config, resolve_config
from rlcm_cli.models.embedded import embedded_folder
from rlcm_cli.runs.inputs import read_prompts

MODEL = "emoji-diffusion"
RANK = 4
"""Of TRL's LoRA, which is fixed; its alpha is the same."""


@dataclass(frozen=True)
class Sizes:
    """Batch sizes of one side."""

    sample: int
    """Images a batch."""
    train: int
    """Transitions in one forward and backward pass."""
    update: int
    """Images an optimizer step."""


PUBLISHED = Sizes(sample=6, train=3, update=3)
"""Of TRL's examples/scripts/ddpo.py."""
DEFAULTS = Sizes(sample=1, train=1, update=1)
"""Of TRL's DDPOConfig."""
OWN = Sizes(sample=64, train=64, update=32)
"""Of rlcm's preset `ddpo-compression` for the embedded model."""
LARGE = Sizes(sample=48, train=48, update=48)

SETTINGS = {
    "own": (OWN, PUBLISHED),
    "defaults": (OWN, DEFAULTS),
    "published": (PUBLISHED, PUBLISHED),
    "large": (LARGE, LARGE),
}
"""Name → (of rlcm, of TRL)."""


def configure(images: int, steps: int, sizes: Sizes) -> Config:
    """Give rlcm the task that TRL does."""
    values = {
        "model.name": MODEL,
        "rewards": {"compressibility": 1.0},
        "lora.rank": RANK,
        "lora.alpha": RANK,
        "sample.samples": images,
        "sample.batch_size": sizes.sample,
        "sample.steps": steps,
        "sample.guidance_scale": 5.0,
        "train.minibatch_size": min(sizes.update, images),
        "train.timestep_fraction": 1.0,
        "runtime.micro_batch_size": sizes.train,
        "runtime.device": "cpu",
    }
    return resolve_config(["ddpo-compression"], flags=values)


@contextlib.contextmanager
def trl_side(python: Path, log: Path, asked: dict[str, Any]) -> Iterator[Callable[[], dict[str, Cost]]]:
    """Start TRL, and give a function that lets it do an epoch: phase → its cost."""
    command = [str(python), str(Path(__file__).with_name("trl_side.py")), json.dumps(asked)]
    with (
        log.open("a") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        requests, answers = process.stdin, process.stdout

        def read_answer() -> dict[str, Cost]:
            answer = answers.readline()
            if not answer:
                raise SystemExit(f"TRL ended without an answer: {log.read_text()[-2000:]}")
            return {phase: Cost(*cost) for phase, cost in json.loads(answer).items()}

        def do_epoch() -> dict[str, Cost]:
            print(file=requests, flush=True)
            return read_answer()

        read_answer()  # it is loaded
        yield do_epoch
        requests.close()


def compare(
    python: Path, images: int, steps: int, rounds: int, ours: Sizes, theirs: Sizes
) -> list[dict[str, dict[str, Cost]]]:
    """Let both sides take turns; give the costs of each round, by side and phase, without the first."""
    config = configure(images, steps, ours)
    (training,) = (own.training for own in read_prompts(config).values())
    asked = {
        "model": str(embedded_folder(MODEL)),
        "prompts": training,
        "images": images,
        "steps": steps,
        "guidance_scale": config.sample.guidance_scale,
        "sample_batch": theirs.sample,
        "train_batch": theirs.train,
        "update_batch": theirs.update,
    }
    with tempfile.TemporaryDirectory() as place:
        side = RlcmSide(Path(place) / "run", config)
        with trl_side(python, Path(place) / "trl.log", asked) as do_epoch:
            return [{"rlcm": side.iterate(), "trl": do_epoch()} for _ in range(rounds + 1)][1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, required=True, help="of the environment that has TRL")
    parser.add_argument("--images", type=int, default=96, help="an iteration; a multiple of 48")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="all by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    images, steps, rounds = arguments.images, arguments.steps, arguments.rounds
    if images % 48:
        parser.error(f"--images {images} is no multiple of 48, so TRL's batches would not fit")
    report: dict[str, Any] = {}
    rows: list[list[str]] = []
    for name in arguments.setting or SETTINGS:
        costs = compare(arguments.trl_python, images, steps, rounds, *SETTINGS[name])
        wall = summarise(costs, images, "wall")["ratio"]
        report[name] = {**summarise(costs, images, "processor"), "wall_ratio": wall}
        rows += table_rows(name, report[name])
    print(f"{MODEL}, {images} images of {steps} DDIM steps, {rounds} rounds, processor time:")
    print_table(COLUMNS, rows)
    asked = {"images": images, "steps": steps, "rounds": rounds}
    write_json(arguments.json, {"machine": describe_machine(), **asked, "settings": report})


if __name__ == "__main__":
    main()
