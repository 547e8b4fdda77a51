"""`rlcm export`: what lies in the folder, how it is checked, what its card says, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from command_line import LORA_FILE, checkpoints, refuse, rlcm, succeed, write_settings
from fake_hub import TOKEN, serving
from huggingface_hub import constants
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlcm_cli.cli.app import main
from rlcm_cli.errors import (
    ConfigError,
    CorruptFileError,
    MissingFileError,
    ModelError,
    RemoteStoreError,
    StorageFullError,
)
from rlcm_cli.pictures import export as phase
from rlcm_cli.store.checkpoint import digest_safetensors


def loop(folder: Path, model: Path | str, *flags: str, **sections: object) -> Path:
    settings = write_settings(folder, Path(model), **sections)
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--config", str(settings), "--run", str(folder / "secretive/run"), "--quiet", *flags])
    assert not leaving.value.code
    return folder / "secretive/run"


@pytest.fixture(scope="module")
def run(tiny_lcm, tmp_path_factory):
    """A run whose adapter visibly acts, and that keeps an average."""
    folder = tmp_path_factory.mktemp("run")
    return loop(folder, tiny_lcm, train={"learning_rate": 0.03, "ema_decay": 0.5})


def read_card(folder: Path) -> tuple[dict, str]:
    header, body = (folder / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(header), body


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture).astype(int)


@pytest.mark.parametrize(
    ("form", "weights"), [("diffusers", LORA_FILE), ("kohya", "mine.safetensors"), ("pipeline", "")]
)
def test_each_format_is_written_checked_and_described(capsys, run, tiny_lcm, tmp_path, form, weights):
    out = tmp_path / "mine"
    outcome = succeed(capsys, "export", run, "--format", form, "--out", out, "--json")
    told = outcome.json_line()
    assert {key: told[key] for key in ("format", "weights", "checkpoint", "hub")} == {
        "format": form,
        "weights": weights,
        "checkpoint": 2,
        "hub": None,
    }
    assert told["verification"]["images"] == 4
    assert told["verification"]["largest"] <= 1
    assert told["verification"]["share"] < 0.01
    assert told["verification"]["trained"] > 1
    assert (out / (weights or "model_index.json")).is_file()
    assert json.loads((out / "export.json").read_text())["verification"] == told["verification"]
    header, card = read_card(out)
    assert header["library_name"] == "diffusers"
    assert ("lora" in header["tags"]) == (form != "pipeline")
    assert "license" not in header
    assert "To be filled in: the licence of the base model, tiny-lcm" in card
    assert "for compressibility" in card
    assert (f"transformers {transformers.__version__}" in card) == (form == "pipeline")
    assert "| `train.learning_rate` | 0.03 |" in card
    assert {file.name for file in out.glob("*.png")} == {"rewards.png", "before_after.png"}
    assert all(f"({file.name})" in card for file in out.glob("*.png"))


def test_no_file_of_an_export_tells_where_it_was_made(capsys, run, tiny_lcm, tmp_path):
    succeed(capsys, "export", run, "--format", "pipeline", "--out", tmp_path / "mine")
    succeed(capsys, "export", run, "--format", "kohya", "--out", tmp_path / "other")
    hidden = [str(run.parent), str(tiny_lcm.parent), str(Path.home()) + "/", "secretive"]
    for file in [*(tmp_path / "mine").rglob("*"), *(tmp_path / "other").rglob("*")]:
        if file.is_file():
            assert not any(word.encode() in file.read_bytes() for word in hidden), file


def test_the_code_of_the_card_draws(capsys, tmp_path, monkeypatch):
    """On the embedded model, whose place the code knows."""
    run = tmp_path / "run"
    asked = ["--task", "compression", "--iterations", "1", "--samples", "4", "--device", "cpu"]
    asked += [
        "--set",
        "evaluate.prompts=1",
        "--set",
        "evaluate.images_per_prompt=1",
        "--set",
        "train.minibatch_size=4",
    ]
    succeed(capsys, "loop", *asked, "--run", run, "--quiet")
    for form in ("kohya", "pipeline"):
        out = tmp_path / form
        succeed(capsys, "export", run, "--format", form, "--out", out)
        header, card = read_card(out)
        assert header["license"] == "apache-2.0"
        (tmp_path / "use.py").write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
        monkeypatch.chdir(out)
        runpy.run_path(str(tmp_path / "use.py"))
        assert pixels(out / "image.png").shape == (64, 64, 3)
    assert np.abs(pixels(tmp_path / "kohya/image.png") - pixels(tmp_path / "pipeline/image.png")).max() <= 1


def test_the_average_and_an_older_checkpoint_are_exported_at_will(capsys, run, tmp_path):
    newest, older = run / "checkpoints/000002", run / "checkpoints/000001"
    for source, flags, original in (
        (run, [], newest / LORA_FILE),
        (run, ["--ema"], newest / "ema" / LORA_FILE),
        (older, [], older / LORA_FILE),
        (older / "ema" / LORA_FILE, [], older / "ema" / LORA_FILE),
    ):
        out = tmp_path / "out"
        succeed(capsys, "export", source, *flags, "--out", out, "--overwrite")
        assert digest_safetensors(out / LORA_FILE) == digest_safetensors(original)
        _, card = read_card(out)
        assert (", their moving average" in card) == ("ema" in str(original))
        assert f"checkpoint {int(original.relative_to(run).parts[1])}" in card
    assert ": 1 iteration of 4 images" in card  # what came after it is not of it
    assert not (out / "rewards.png").exists()


def test_a_lora_of_no_run_needs_its_base_and_goes_from_format_to_format(capsys, run, tiny_lcm, tmp_path):
    succeed(capsys, "export", run, "--format", "kohya", "--out", tmp_path / "mine")
    lone = shutil.copy(tmp_path / "mine/mine.safetensors", tmp_path / "lone.safetensors")
    refuse(capsys, ConfigError, "export", lone, saying=("lies in no run", "--model NAME"))
    refuse(capsys, ConfigError, "export", lone, "--ema", saying=("--ema",))
    succeed(capsys, "export", lone, "--model", tiny_lcm, "--out", tmp_path / "back", "--quiet")
    told = json.loads((tmp_path / "back/export.json").read_text())["verification"]
    assert told["largest"] <= 1
    header, card = read_card(tmp_path / "back")
    assert "Settings" not in card
    assert "lora" in header["tags"]


def test_a_run_of_full_training_gives_a_pipeline_alone(capsys, tiny_lcm, tmp_path):
    run = loop(tmp_path, tiny_lcm, "--train", "full", runtime={"iterations": 1})
    assert checkpoints(run) == [0, 1]
    for form in ("kohya", "diffusers"):
        refuse(capsys, ConfigError, "export", run, "--format", form, saying=("whole denoiser", "--format pipeline"))
    outcome = succeed(capsys, "export", run, "--format", "pipeline", "--out", tmp_path / "out", "--json")
    assert outcome.json_line()["verification"]["largest"] == 0
    _, card = read_card(tmp_path / "out")
    assert "All weights of the denoiser" in card
    assert "lora.rank" not in card


def test_what_is_there_stays_unless_it_is_an_export_and_may_go(capsys, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    asked = ["export", run, "--out", out]
    refuse(capsys, ConfigError, *asked, saying=(f"--out {out}: is there already", "--overwrite"))
    refuse(capsys, ConfigError, *asked, "--overwrite", saying=("is not an export", "export.json"))
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_the_folder_is_named_after_the_run_unless_named(capsys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = succeed(capsys, "export", run).out.removeprefix(f"loading {run} …\n").splitlines()
    assert line.startswith("exports/run-diffusers: diffusers LoRA; the 4 images")
    assert (tmp_path / "exports/run-diffusers" / LORA_FILE).is_file()


@pytest.mark.parametrize(
    ("checked", "fault"),
    [(True, "differs from what the LoRA makes of it"), (False, "differ from the checkpoint's by")],
)
def test_a_wrong_export_is_an_error_and_is_not_left_there(capsys, run, tmp_path, monkeypatch, checked, fault):
    """An alpha that is lost, as diffusers' own converter to kohya's keys loses it: seen in the file, and in images."""
    true_write = phase.write_kohya

    def write_with_rank_for_alpha(model, file, dtype, **settings):
        true_write(model, file, dtype, **settings)
        tensors = load_file(file)
        for key in [key for key in tensors if key.endswith(".alpha")]:
            tensors[key] = torch.tensor(float(len(tensors[key.replace(".alpha", ".lora_down.weight")])))
        save_file(tensors, file)
        return file

    monkeypatch.setattr(phase, "write_kohya", write_with_rank_for_alpha)
    if not checked:
        monkeypatch.setattr(phase, "compare_files", lambda *arguments: None)
    asked = ["export", run, "--format", "kohya", "--out", tmp_path / "out"]
    refuse(capsys, ModelError, *asked, saying=("not written", fault))
    assert list(tmp_path.iterdir()) == []


def lack_space(*arguments: object, **settings: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def lack_space_as_safetensors(*arguments: object, **settings: object) -> None:
    raise SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})")


@pytest.mark.parametrize("write", [lack_space, lack_space_as_safetensors])
def test_a_full_disk_is_one_line_and_leaves_nothing(capsys, run, tmp_path, monkeypatch, write):
    monkeypatch.setattr(phase, "write_kohya", write)
    asked = ["export", run, "--format", "kohya", "--out", tmp_path / "out"]
    refuse(capsys, StorageFullError, *asked, saying=(f"{tmp_path / 'out'}: not written, the disk is full",))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_line(capsys, run, tiny_lcm, tmp_path):
    out = ["--out", tmp_path / "out"]
    refuse(capsys, ConfigError, "export", tmp_path / "nowhere", *out, saying=("no such run, checkpoint or LoRA file",))
    refuse(capsys, ModelError, "export", tiny_lcm, *out, saying=("holds no LoRA", "name a run"))
    refuse(capsys, ConfigError, "export", run, "--public", *out, saying=("--public needs --hub OWNER/NAME",))
    refuse(capsys, ModelError, "export", run, "--model", tmp_path, *out, saying=("not a pipeline of diffusers",))
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "config.json", empty)
    refuse(capsys, MissingFileError, "export", empty, *out, saying=("holds no run yet",))
    text = tmp_path / "notes.safetensors"
    text.write_text("no LoRA")
    refuse(capsys, ModelError, "export", text, "--model", tiny_lcm, *out, saying=("not a readable safetensors file",))
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(capsys, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copy(copy / "checkpoints/000001" / LORA_FILE, copy / "checkpoints/000002" / LORA_FILE)
    refuse(capsys, CorruptFileError, "export", copy, "--out", tmp_path / "out", saying=("not the file that was",))
    refuse(
        capsys, ConfigError, "export", copy / "checkpoints/000000", "--ema", "--out", tmp_path / "o", saying=("--ema",)
    )


def test_another_base_than_the_run_s_is_refused(capsys, run, tmp_path):
    outcome = rlcm(capsys, "export", run, "--model", "emoji-lcm", "--out", tmp_path / "out")
    assert outcome.status == 4
    assert "another base model than 'emoji-lcm'" in outcome.err


def test_a_reward_of_one_s_own_is_named_without_its_place(capsys, tiny_lcm, tmp_path):
    (tmp_path / "secretive").mkdir()
    own = tmp_path / "secretive/rewards.py"
    own.write_text("def redness(images, prompts, metadata):\n    return images[:, 0].float().mean((1, 2))\n")
    run = loop(tmp_path, tiny_lcm, "--reward", f"{own}:redness", "--monitor", "compressibility")
    succeed(capsys, "export", run, "--out", tmp_path / "out")
    _, card = read_card(tmp_path / "out")
    assert "for rewards.py:redness" in card
    assert "secretive" not in card
    assert "compressibility" in card


def test_it_is_uploaded_privately_with_its_card(capsys, run, tmp_path, monkeypatch):
    asked = ["export", run, "--hub", "ann/compressed", "--out", tmp_path / "out"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refuse(capsys, RemoteStoreError, *asked, saying=("--hub ann/compressed", "HF_HUB_OFFLINE"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        outcome = succeed(capsys, *asked, "--json")
        assert outcome.json_line()["hub"] == f"{hub.address}/ann/compressed"
        assert TOKEN not in outcome.out + outcome.err
        (repository,) = hub.repositories.values()
        refuse(capsys, ConfigError, *asked, "--out", tmp_path / "again", saying=("holds files already",))
    assert repository["private"]
    assert repository["files"] == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    card = repository["files"]["README.md"].decode()
    assert "# compressed" in card
    assert f'load_lora_weights("ann/compressed", weight_name="{LORA_FILE}")' in card


def test_a_run_on_object_storage_is_exported_as_a_local_one(capsys, remote, machine, tiny_lcm, tmp_path):
    settings = write_settings(tmp_path, tiny_lcm)
    succeed(capsys, "loop", "--config", settings, "--run", remote, "--quiet")
    machine("another")
    for source, number in ((remote, 2), (f"{remote}/checkpoints/000001", 1)):
        out = tmp_path / str(number)
        told = succeed(capsys, "export", source, "--out", out, "--json").json_line()
        assert told["checkpoint"] == number
        _, card = read_card(out)
        assert f": {number} iteration" in card


def test_who_asks_for_a_tool_is_told_its_format(capsys, run):
    for name in ("comfyui", "A1111"):
        outcome = rlcm(capsys, "export", run, "--format", name)
        assert outcome.status == 2
        assert f"'{name}' is not one of diffusers, kohya, pipeline; kohya is the one that ComfyUI" in outcome.err


def test_our_own_export_can_be_inspected_and_started_from(capsys, run, tiny_lcm, tmp_path):
    for form, weights in (("kohya", "kohya.safetensors"), ("diffusers", LORA_FILE)):
        succeed(capsys, "export", run, "--format", form, "--out", tmp_path / form)
        told = succeed(capsys, "inspect", tmp_path / form / weights, "--json").json_line()
        assert (told["kind"], told["format"], told["rank"], told["alpha"]) == ("adapter", form, 2, 4)
    lone = shutil.copy(tmp_path / "kohya/kohya.safetensors", tmp_path / "lone.safetensors")
    succeed(capsys, "export", lone, "--model", tiny_lcm, "--out", tmp_path / "again")
    settings = write_settings(tmp_path, tiny_lcm)
    started = ["sample", "--config", settings, "--from", tmp_path / "again", "--run", tmp_path / "started", "--quiet"]
    succeed(capsys, *started)
    first = tmp_path / "started/checkpoints/000000" / LORA_FILE
    assert read_modules(first) == read_modules(run / "checkpoints/000002" / LORA_FILE)


def read_modules(file: Path) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}
