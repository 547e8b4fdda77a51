"""How the command line speaks of models: what it loads, what is odd about it, and what it cannot load."""

from __future__ import annotations

from pathlib import Path

from command_line import refuse, succeed

from rlcm_cli.errors import ModelError

DRAWING = ("--prompt", "cat", "--steps", 2)


def test_what_is_odd_about_a_model_is_a_warning(capsys, tiny_lcm_copy: Path, tmp_path: Path) -> None:
    file = tiny_lcm_copy / "vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".fp16.safetensors"))
    told = succeed(capsys, "generate", "--model", tiny_lcm_copy, *DRAWING, "--out", tmp_path / "out").err
    assert told == f"warning: {tiny_lcm_copy}: its vae is there as the fp16 variant only; loaded as float32\n"


def test_a_mistyped_run_is_found_before_a_model_is_loaded(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/compression").mkdir(parents=True)
    refuse(
        capsys,
        ModelError,
        "generate",
        "--lora",
        "runs/compresion",
        *DRAWING,
        saying=("did you mean runs/compression", "hub"),
    )
