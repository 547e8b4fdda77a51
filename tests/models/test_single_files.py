"""A whole model in one file: what it is, and how to make a folder of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlcm_cli.models.single_files import explain_single_file

DENOISER = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([DENOISER, "cond_stage_model.x"], "StableDiffusionPipeline as P"),
        ([DENOISER, "conditioner.embedders.1.x"], "StableDiffusionXLPipeline as P"),
        ([DENOISER], "a denoiser without its text encoders; use the LoRA of the same release"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a denoiser without its text encoders; use the LoRA"),
        (["lora_unet_x.lora_down.weight"], "is a LoRA, not a model"),
        (["something"], "not a model of a known family"),
    ],
)
def test_its_tensors_say_what_it_is(tmp_path, keys, words):
    file = tmp_path / "all.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, file)
    line = explain_single_file("mine", file)
    assert words in line
    assert line.startswith("mine: ")
    assert "\n" not in line


def test_files_that_are_not_read(tmp_path):
    assert "there is no such file" in explain_single_file("mine", tmp_path / "gone.safetensors")
    assert "--set model.distilled_lora=ann/few/a_lora.safetensors" in explain_single_file(
        "ann/few/a_lora.safetensors", Path("ann/few/a_lora.safetensors")
    )
    (tmp_path / "mine.ckpt").write_bytes(b"")
    assert "a pickle could run code" in explain_single_file("mine", tmp_path / "mine.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    assert "is damaged" in explain_single_file("mine", tmp_path / "cut.safetensors")
