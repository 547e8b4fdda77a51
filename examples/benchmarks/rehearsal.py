"""A whole iteration at the size of SDXL-Turbo, with random weights: the memory and the time that it takes.

    python -m examples.benchmarks.rehearsal

Builds a pipeline of the real classes and sizes in bfloat16, but for a small vocabulary (7 GB of disk). Then runs the
phases as commands, each a process of its own: 4 images of 512 pixels sampled, scored and trained on, the LoRA
exported (drawn by plain diffusers, in float32) and loaded back by `generate`. Prints the seconds and the peak of
resident memory of each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks.costs import describe_machine, write_json

ARCHITECTURE = "sdxl-turbo"
PROMPTS = ("a cat", "a dog on green", "a red car", "a house")


@dataclass(frozen=True)
class Command:
    """What a command took."""

    name: str
    seconds: float
    peak: int
    """Bytes of resident memory, at most."""


def build_pipeline(folder: Path) -> None:
    """Save a pipeline of the architecture with random weights, as its makers' repository has it."""
    from rlcm_cli.models.architectures import made_there
    from rlcm_cli.models.embedded import embedded_folder
    from rlcm_cli.models.libraries import quiet_libraries
    from rlcm_cli.models.parts import find_architecture

    with quiet_libraries():
        from transformers import CLIPTokenizer

    _, architecture = find_architecture(ARCHITECTURE)
    with made_there(torch.device("cpu"), torch.bfloat16):
        pipeline: Any = architecture.build()
        encoders = architecture.build_text_encoders()
    tokenizer = CLIPTokenizer.from_pretrained(embedded_folder("emoji-lcm") / "tokenizer")
    for encoder in encoders.values():
        encoder.config.bos_token_id, encoder.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    pipeline.register_modules(**encoders, tokenizer=tokenizer, tokenizer_2=tokenizer)
    with quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)


def run_command(*arguments: object) -> Command:
    """Run `rlcm ARGUMENTS` to its end. Raises `SystemExit` where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ rlcm {' '.join(words)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "rlcm_cli", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rlcm {words[0]} failed with status {os.waitstatus_to_exitcode(status)}")
    kilobytes = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss // 1024
    return Command(words[0], time.perf_counter() - started, 1024 * kilobytes)


def rehearse(folder: Path, model: Path, size: int, extra: Sequence[str]) -> list[Command]:
    """Run the phases of an iteration, and what is done with its LoRA, in a folder."""
    run, exported = folder / "run", folder / "export"
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    settings = ["sample.batch_size=4", "train.minibatch_size=4", "runtime.micro_batch_size=1", "lora.rank=16"]
    settings += [
        "prompts.held_out_fraction=0.25",
        "evaluate.prompts=1",
        "evaluate.images_per_prompt=1",
        "runtime.iterations=1",
    ]
    given = ["--task", "compression", "--reward", "compressibility", "--model", model, "--dtype", "bfloat16"]
    given += ["--size", size, "--prompts", prompts, "--samples", 4, "--steps", 2]
    given += [word for setting in settings for word in ("--set", setting)]
    commands = [
        run_command("sample", "--run", run, *given, *extra),
        run_command("score", "--run", run),
        run_command("train", "--run", run),
        run_command("export", run, "--out", exported),
    ]
    (lora,) = exported.glob("*.safetensors")
    options = ["--model", model, "--dtype", "bfloat16", "--size", size, "--steps", 2]
    drawn = run_command("generate", "--lora", lora, "--prompt", "a cat", "--out", folder / "images", *options)
    return [*commands, drawn]


def main() -> None:
    """Build, rehearse, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="pixels of an image")
    parser.add_argument("--folder", type=Path, help="where to work and to keep everything; default: a temporary one")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("extra", nargs="*", help="options of `rlcm sample`, after --, such as -- --quantize 4bit")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        model = folder / ARCHITECTURE
        if not (model / "model_index.json").exists():
            started = time.perf_counter()
            build_pipeline(model)
            print(f"{model.name}: built in {time.perf_counter() - started:.0f} s")
        commands = rehearse(folder, model, arguments.size, arguments.extra)
    print(f"\n| {ARCHITECTURE}, {arguments.size} pixels | seconds | peak of resident memory |\n| --- | --- | --- |")
    for command in commands:
        print(f"| `rlcm {command.name}` | {command.seconds:.0f} | {command.peak / 1e9:.1f} GB |")
    report = {"machine": describe_machine(), "size": arguments.size, "options": arguments.extra}
    write_json(arguments.json, {**report, "commands": [asdict(command) for command in commands]})


if __name__ == "__main__":
    main()
