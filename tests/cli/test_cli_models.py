"""How the command line speaks of models: what it loads, what is odd about it, and what it cannot load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import refuse, succeed

from rlcm_cli.cli.app import main
from rlcm_cli.errors import ModelError

DRAWING = ("--prompt", "cat", "--steps", 2)


def test_what_is_odd_about_a_model_is_a_warning(capsys, tiny_lcm_copy: Path, tmp_path: Path) -> None:
    file = tiny_lcm_copy / "vae/diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".fp16.safetensors"))
    told = succeed(capsys, "generate", "--model", tiny_lcm_copy, *DRAWING, "--out", tmp_path / "out").err
    assert told == f"warning: {tiny_lcm_copy}: its vae is there as the fp16 variant only; loaded as float32\n"


@pytest.mark.parametrize("flag", ["--quiet", "--json", None])
def test_what_is_loaded_is_said_before_the_libraries_are_imported(capsys, flag: str | None, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rlcm_cli.pictures.generate", None)  # which imports torch
    with pytest.raises(ImportError):
        main(["generate", "--model", "some-model", *map(str, DRAWING), *filter(None, [flag])])
    assert capsys.readouterr().out == ("" if flag else "loading some-model …\n")


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
