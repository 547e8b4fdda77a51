"""Commands that only read a run, or print a configuration, do not wait for torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from command_line import succeed, write_settings
from safetensors.torch import save_file

HEAVY = {"torch", "diffusers", "transformers", "peft"}
SCRIPT = f"""
import sys
from rlcm_cli.cli.app import main
try:
    main(sys.argv[1:])
finally:
    print("imported", sorted({HEAVY} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_lcm):
    """Two finished runs, with evaluations, that differ in their seeds, a PNG of the program, and a LoRA of kohya's."""
    folder = tmp_path_factory.mktemp("runs")
    settings = write_settings(folder, tiny_lcm, runtime={"iterations": 2})
    for seed in (1, 2):
        command = [sys.executable, "-m", "rlcm_cli", "loop", "--config", settings, "--seed", str(seed), "--quiet"]
        subprocess.run([*command, "--run", folder / str(seed)], check=True, capture_output=True)
    module = "lora_unet_mid_block_attentions_0_proj_in"
    kohya = {"lora_down.weight": torch.ones(2, 3), "lora_up.weight": torch.ones(5, 2), "alpha": torch.tensor(1.5)}
    save_file({f"{module}.{role}": values.bfloat16() for role, values in kohya.items()}, folder / "kohya.safetensors")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "tasks",
        "tasks show compression",
        "rewards",
        "rewards aesthetic",
        "rewards compressibility --json",
        "loop --task compression --monitor sharpness --seed 3 --dry-run",
        "loop --run {runs}/1 --iterations 9 --dry-run --json",
        "inspect {runs}/1",
        "inspect {runs}/1/rollouts/000000/shard-00000-of-00002.safetensors --json",
        "inspect {runs}/1/evaluations/000002/evaluation.safetensors",
        "inspect {runs}/1/before_after.png",
        "inspect {runs}/1/checkpoints/000001",
        "inspect {runs}/1/checkpoints/000001/pytorch_lora_weights.safetensors",
        "inspect {runs}/kohya.safetensors --json",
        "inspect {runs}/1 --verify",
        "inspect {runs}/1 --images {runs}/images --rollout 0",
        "runs {runs}",
        "runs {runs} --json",
        "prune {runs}/1 --dry-run",
        "watch {runs}/1 --once",
        "watch {runs}/1 --once --json",
        "compare {runs}/1 {runs}/2 --out {runs}/comparison",
    ],
)
def test_a_command_that_reads_does_not_import_torch(runs, words):
    command = [sys.executable, "-c", SCRIPT, *words.format(runs=runs).split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (0, "imported []"), ended.stderr


def test_the_guard_sees_an_import(runs):
    command = [sys.executable, "-c", f"import torch{SCRIPT}", "inspect", runs / "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[-1] == "imported ['torch']"


def test_what_is_read_without_torch_is_what_torch_reads(capsys, runs):
    shard = runs / "1/rollouts/000000/shard-00000-of-00002.safetensors"
    shown = " ".join(succeed(capsys, "inspect", shard).out.split())
    assert "tensors images uint8 [" in shown
    assert "tensors latents float32 [" in shown
    assert "tensors sample_index int64 [" in shown


def test_a_lora_in_bfloat16_is_read_without_torch(capsys, runs):
    found = json.loads(succeed(capsys, "inspect", runs / "kohya.safetensors", "--json").out)
    assert {key: found[key] for key in ("format", "rank", "alpha", "strength", "modules", "parameters")} == {
        "format": "kohya",
        "rank": 2,
        "alpha": 1.5,
        "strength": 0.75,
        "modules": {"unet": 1},
        "parameters": 17,
    }
