"""rlcm against RLCM as a plain loop over diffusers' pipeline and scheduler (`reference_loop.py`), in one process.

    OMP_NUM_THREADS=1 python -m examples.benchmarks.reference_style
    python -m examples.benchmarks.reference_style --device cuda --dtype bfloat16 --model FOLDER --steps 8

Same model, images an iteration, model calls, LoRA, optimizer batch and reward; the two take turns. Four settings:

    own         rlcm with its batch sizes; the loop with the published ones (4 images, 2 samples a micro-step),
                training the noised last call too, as the published code does
    actions     the same, the loop training what rlcm trains: the calls before the last
    published   both with the published batch sizes, and the same actions
    large       both with rlcm's batch sizes, and the same actions

Prints seconds an image of sampling and of training, and the ratio of their sums, with the range over the rounds: of
processor time on a CPU, of the clock on a GPU. Start-up, the first round and scoring are left out; rlcm's files and
checkpoints are in, the loop writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.benchmarks.costs import COLUMNS, Cost, describe_machine, print_table, summarise, table_rows, write_json
from examples.benchmarks.reference_loop import ReferenceLoop, ReferenceSettings
from examples.benchmarks.rlcm_side import RlcmSide
from rlcm_cli.config import Config, resolve_config
from rlcm_cli.models.embedded import embedded_folder
from rlcm_cli.models.loading import DTYPES
from rlcm_cli.runs.inputs import read_prompts

PUBLISHED = (4, 2)
"""Images a batch in sampling, samples a micro-step in training: of RLCM's compression task on one GPU."""
LARGEST_DRIFT = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.2}
"""Of the loop's probability ratio from 1 before any update: more, and it trains on something else than it drew."""
SETTINGS = ("own", "actions", "published", "large")


def configure(arguments: argparse.Namespace, sample_batch: int, train_batch: int) -> Config:
    """Give rlcm the task that the loop does."""
    values = {
        "model.name": arguments.model,
        "model.dtype": arguments.dtype,
        "prompts.source": "simple_animals",
        "rewards": {"compressibility": 1.0},
        "sample.samples": arguments.images,
        "sample.batch_size": sample_batch,
        "sample.steps": arguments.steps,
        "sampler.spacing": "diffusers",
        "train.minibatch_size": arguments.images,
        "runtime.micro_batch_size": train_batch,
        "runtime.device": arguments.device,
    }
    return resolve_config(["compression"], flags=values)


def compare(arguments: argparse.Namespace, setting: str) -> list[dict[str, dict[str, Cost]]]:
    """Let both sides take turns; give the costs of each round, by side and phase, without the first."""
    own = (arguments.sample_batch, arguments.train_batch)
    config = configure(arguments, *(PUBLISHED if setting == "published" else own))
    sample, train = own if setting == "large" else PUBLISHED
    settings = ReferenceSettings(
        images=arguments.images,
        steps=arguments.steps,
        sample=sample,
        train=train,
        update=arguments.images,
        last_call=False,
        guidance_scale=config.sample.guidance_scale,
    )
    folder = embedded_folder(arguments.model) or Path(arguments.model)
    (training,) = (own.training for own in read_prompts(config).values())
    loop = ReferenceLoop(
        folder,
        replace(settings, last_call=setting == "own"),
        list(training),
        arguments.device,
        DTYPES[arguments.dtype],
        config.lora.rank,
    )
    with tempfile.TemporaryDirectory() as place:
        side = RlcmSide(Path(place) / "run", config)
        rounds = [{"rlcm": side.iterate(), "plain loop": loop.iterate()} for _ in range(arguments.rounds + 1)]
    if not loop.drift <= LARGEST_DRIFT[arguments.dtype]:
        raise SystemExit(f"the plain loop replays other transitions than it drew: its ratio is {loop.drift:.1e} off 1")
    return rounds[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-lcm", help="embedded, or the folder of a latent consistency model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--images", type=int, default=64, help="an iteration, and an optimizer step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sample-batch", type=int, default=64, help="rlcm's own")
    parser.add_argument("--train-batch", type=int, default=64, help="rlcm's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="all by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    asked = arguments.setting or SETTINGS
    for size in {*PUBLISHED, *((arguments.sample_batch, arguments.train_batch) if "large" in asked else ())}:
        if arguments.images % size:
            parser.error(f"--images {arguments.images} is no multiple of {size}, so the loop's batches would not fit")
    clock, other = ("wall", "processor") if arguments.device.startswith("cuda") else ("processor", "wall")
    report: dict[str, Any] = {}
    rows: list[list[str]] = []
    for name in asked:
        costs = compare(arguments, name)
        report[name] = summarise(costs, arguments.images, clock)
        report[name][f"{other}_ratio"] = summarise(costs, arguments.images, other)["ratio"]
        rows += table_rows(name, report[name])
    iteration = f"{arguments.images} images, H = {arguments.steps}"
    print(f"{arguments.model}, {iteration}, {arguments.rounds} rounds, {clock} time:")
    print_table(COLUMNS, rows)
    options = {key: value for key, value in vars(arguments).items() if key not in ("json", "setting")}
    write_json(
        arguments.json,
        {"machine": describe_machine(arguments.device), "options": options, "clock": clock, "settings": report},
    )


if __name__ == "__main__":
    main()
