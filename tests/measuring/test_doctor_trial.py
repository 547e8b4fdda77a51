"""What `rlcm doctor --model NAME --try` does: every step of a run once, and what it says where one goes wrong."""

from __future__ import annotations

import shutil
import tempfile

import pytest
import torch
from command_line import rlcm
from fake_hub import files_of, reached
from model_helpers import edit_json
from safetensors.torch import load_file, save_file
from tiny_pipelines import BUILDERS, SIZES

from rlcm_cli.measuring import doctor
from rlcm_cli.measuring.doctor import trial
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.pictures import export

TOPICS = [f"try: {step}" for step in trial.STEPS]
CASES = [pytest.param(kind, name, id=f"{kind} {name}") for kind, builders in BUILDERS.items() for name in builders]


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """The folder that temporary ones are made in, which is empty afterwards; the machine itself is not looked at."""
    monkeypatch.setattr(doctor, "examine", lambda runs: iter([]))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


def attempt(capsys, model, *words):
    """The findings of the trial, as JSON has them."""
    outcome = rlcm(capsys, "doctor", "--model", model, "--try", "--device", "cpu", "--json", *words)
    found = [one for one in outcome.json_line()["findings"] if one["topic"].startswith("try")]
    assert outcome.status == int(any(one["status"] == "problem" for one in found))
    assert not any("\n" in one["found"] for one in found)
    return found


def test_the_embedded_model_takes_every_step(capsys):
    found = attempt(capsys, "emoji-lcm")
    assert [(one["topic"], one["status"], one["advice"]) for one in found] == [(topic, "ok", "") for topic in TOPICS]
    load, draw, compared, ratio, train, exported = (one["found"] for one in found)
    assert all(" s, peak " in text for text in (load, draw, compared, ratio, train, exported))
    assert load.startswith("in float32, on cpu")
    assert draw.startswith("'a cat', 64 × 64 pixels, 4 calls of the sampler lcm, guidance 4; ")
    assert ratio.startswith("actions of a run, scored again by training, have the probability ratio 1")
    assert train.startswith("a step of ppo moved 56 of 112 tensors (in a LoRA's first step those of B)")
    assert "the 1 image drawn with it by diffusers" in exported


def test_it_is_drawn_and_trained_as_asked(capsys, tiny_lcm):
    asked = ("--steps", "3", "--size", "32x16", "--dtype", "bfloat16", "--quantize", "8bit")
    found = {one["topic"]: one for one in attempt(capsys, tiny_lcm, *asked)}
    assert [*found] == TOPICS
    assert {one["status"] for one in found.values()} == {"ok"}
    assert "32 × 16 pixels, 3 calls of the sampler lcm" in found["try: draw"]["found"]
    assert found["try: load"]["found"].startswith("in bfloat16, the denoiser in 8bit, on cpu")


def test_a_model_of_the_hub_is_downloaded_and_takes_every_step(capsys, tiny_lcm, tmp_path, monkeypatch):
    with reached(monkeypatch, tmp_path / "cache") as hub:
        hub.add("ann/lcm", files=files_of(tiny_lcm))
        found = attempt(capsys, "ann/lcm")
        asked = [path for path in hub.asked if "/resolve/" in path]
        assert any(path.endswith("unet/diffusion_pytorch_model.safetensors") for path in asked)
    assert [(one["topic"], one["status"]) for one in found] == [(topic, "ok") for topic in TOPICS]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_family_takes_every_step(kind, name, dtype, tmp_path, capsys):
    folder = BUILDERS[kind][name](tmp_path / name)
    size = ["--size", "{1}x{0}".format(*SIZES[kind])] if kind in SIZES else []
    found = attempt(capsys, folder, "--dtype", dtype, *size)
    assert [one["topic"] for one in found] == TOPICS
    # In float16 some have parts of other types, which diffusers' own pipeline does not take.
    compared = {"ok", "note"} if dtype == "float16" else {"ok"}
    assert [one["status"] in (compared if number == 2 else {"ok"}) for number, one in enumerate(found)] == [True] * 6
    if dtype == "float32":
        assert "draws the same" in found[2]["found"]


def break_weights(folder):
    file = next((folder / "unet").glob("*.safetensors"))
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file)


def remove_weights(folder):
    next((folder / "unet").glob("*.safetensors")).unlink()


def raise_out_of_memory(*_, **__):
    raise torch.OutOfMemoryError


def forget_the_lora(source, form, weights, device):
    return export.load_configured_model(source.model, source.sampler.kind, str(device)).pipeline


FAULTS = {
    "weights that are missing": (remove_weights, None, "load", "holds no safetensors weights"),
    "weights that are NaN": (break_weights, None, "draw", "the model's U-Net gives NaN or infinity in float32"),
    "too little memory": (None, (trial, "load_configured_model", raise_out_of_memory), "load", "memory ended; use"),
    "a ratio that is not 1": (
        None,
        (Probe, "ratio_drift", lambda probe, size: 0.5),
        "ratio",
        "rollout of this check: before any update the probability ratio is 5.00e-01 away from 1",
    ),
    "a gradient of nothing": (None, (trial, "RATE", 0.0), "train", "changed no weight"),
    "an export without effect": (None, (export, "_read_back", forget_the_lora), "export", "not written, since the 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_step_that_fails_is_the_last_one(name, capsys, tiny_lcm, tmp_path, monkeypatch):
    spoil, patch, step, said = FAULTS[name]
    folder = tiny_lcm
    if spoil is not None:
        folder = shutil.copytree(tiny_lcm, tmp_path / "model")
        spoil(folder)
    if patch is not None:
        monkeypatch.setattr(*patch)
    found = attempt(capsys, folder)
    number = trial.STEPS.index(step)
    left = [("try", "note")] * (number + 1 < len(TOPICS))
    assert [(one["topic"], one["status"]) for one in found] == [
        *((topic, "ok") for topic in TOPICS[:number]),
        (TOPICS[number], "problem"),
        *left,
    ]
    assert said in found[number]["found"]
    if left:
        assert found[-1]["found"] == f"not tried after this: {', '.join(trial.STEPS[number + 1 :])}"


def test_images_that_are_wrong_are_told_and_the_rest_is_tried(capsys, tiny_lcm, monkeypatch):
    own = trial.draw_by_pipeline
    monkeypatch.setattr(trial, "draw_by_pipeline", lambda *given: 255 - own(*given))
    monkeypatch.setattr(trial, "BLANK", 1000.0)
    found = attempt(capsys, tiny_lcm)
    assert [one["topic"] for one in found] == TOPICS
    faults = {one["topic"]: one["advice"] for one in found if one["status"] == "problem"}
    assert [*faults] == ["try: draw", "try: diffusers"]
    assert faults["try: draw"].startswith("the image is blank")
    assert faults["try: diffusers"] == "more than rounding in float32 explains; report it, with the model's name"


def test_parts_of_several_types_that_diffusers_does_not_take_are_no_fault(capsys, tmp_path):
    """Such as SDXL's autoencoder, which overflows float16."""
    folder = BUILDERS["sdxl"]["sdxl-turbo"](tmp_path / "sdxl")
    edit_json(folder / "vae" / "config.json", force_upcast=True)
    found = attempt(capsys, folder, "--dtype", "float16")
    assert [one["topic"] for one in found] == TOPICS
    assert [one["status"] for one in found] == ["ok", "ok", "note", "ok", "ok", "ok"]
    assert found[2]["found"].startswith("not compared: what overflows float16 is in another type")


def test_what_diffusers_itself_cannot_do_is_one_line(capsys, tiny_lcm, monkeypatch):
    def fail(*_):
        raise RuntimeError("expected scalar type Half\nbut found Float")

    monkeypatch.setattr(trial, "draw_by_pipeline", fail)
    *_, compared, _ = attempt(capsys, tiny_lcm)
    assert compared["found"].startswith("diffusers' own pipeline fails (expected scalar type Half but found Float)")


def test_a_model_that_cannot_be_is_not_tried(capsys, tmp_path):
    outcome = rlcm(capsys, "doctor", "--model", tmp_path / "nowhere", "--try")
    assert (outcome.status, len(outcome.out.splitlines()), outcome.err) == (1, 1, "")
    assert outcome.out.startswith("problem model ")
