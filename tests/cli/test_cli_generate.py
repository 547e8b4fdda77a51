"""`rlcm generate`: what is drawn, from which adapter, and what the pictures say of themselves."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import LORA_FILE, refuse, snapshot, succeed, write_settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rlcm_cli.cli.app import main
from rlcm_cli.errors import ConfigError, MissingFileError, ModelError


@pytest.fixture(scope="module")
def run(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose adapter visibly acts."""
    folder = tmp_path_factory.mktemp("run")
    settings = write_settings(folder, tiny_lcm, train={"learning_rate": 0.05})
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--config", str(settings), "--run", str(folder / "run"), "--quiet"])
    assert not leaving.value.code
    return folder / "run"


def pictures(folder: Path) -> list[Path]:
    """Images of a folder, but for the sheet."""
    return sorted(file for file in folder.glob("*.png") if file.name != "sheet.png")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def draw(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> list[np.ndarray]:
    """Generate into a new folder; give the images."""
    succeed(capsys, "generate", "--out", folder, *arguments)
    return [pixels(file) for file in pictures(folder)]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_each_picture_says_how_it_was_made(capsys, run, tiny_lcm, tmp_path):
    asked = [
        "--lora",
        run,
        "--prompt",
        "a cat",
        "--steps",
        "2",
        "--seed",
        "5",
        "--guidance",
        "3",
        "--scale",
        "0.5",
    ]
    draw(capsys, tmp_path / "out", *asked)
    (file,) = pictures(tmp_path / "out")
    with Image.open(file) as picture:
        told = dict(picture.text)
    digest = succeed(capsys, "inspect", run / "checkpoints/000002" / LORA_FILE, "--json").json_line()["digest"]
    software = told.pop("software")
    assert software.startswith("rlcm ")
    assert len(told.pop("model_digest")) == 64
    assert told == {
        "prompt": "a cat",
        "seed": "5",
        "sampler": "lcm",
        "steps": "2",
        "guidance_scale": "3.0",
        "eta": "1.0",
        "spacing": "diffusers",
        "original_steps": "50",
        "model": tiny_lcm.name,
        "dtype": "float32",
        "batch": "1/1",
        "lora": f"run/checkpoints/000002/{LORA_FILE}",
        "lora_digest": digest,
        "lora_scale": "0.5",
    }
    assert file.name == "00000-a-cat-5.png"


def test_a_sheet_shows_all_pictures(capsys, tiny_lcm, tmp_path):
    outcome = succeed(
        capsys,
        "generate",
        "--model",
        tiny_lcm,
        "--prompt",
        "cat",
        "--prompt",
        "dog",
        "--count",
        "3",
        "--out",
        tmp_path,
    )
    assert f"{tmp_path / 'sheet.png'}: contact sheet of 6 images" in outcome.out
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 18 + 2, 4 * 18 + 2, 3)  # 4 columns, gaps of 2
    drawn = [pixels(file) for file in pictures(tmp_path)]
    for number, image in enumerate(drawn):
        row, column = divmod(number, 4)
        top, left = 2 + 18 * row, 2 + 18 * column
        assert np.array_equal(sheet[top : top + 16, left : left + 16], image)


def test_image_i_has_the_seed_plus_i(capsys, tiny_lcm, tmp_path):
    several = draw(capsys, tmp_path / "several", "--model", tiny_lcm, "--prompt", "cat", "--count", "3", "--seed", "7")
    last = draw(capsys, tmp_path / "last", "--model", tiny_lcm, "--prompt", "cat", "--seed", "9")
    assert [file.stem.rpartition("-")[2] for file in pictures(tmp_path / "several")] == ["7", "8", "9"]
    assert np.abs(several[2].astype(int) - last[0]).max() <= 1  # another batch size rounds otherwise
    assert not np.array_equal(several[0], several[2])


def test_prompts_come_from_a_file_after_those_of_the_command(capsys, tiny_lcm, tmp_path):
    (tmp_path / "mine.txt").write_text("a dog on blue\n# not this\n\na cow\n", encoding="utf-8")
    asked = ["--model", tiny_lcm, "--prompt", "cat", "--prompts", tmp_path / "mine.txt"]
    draw(capsys, tmp_path / "out", *asked)
    names = [file.name for file in pictures(tmp_path / "out")]
    assert names == ["00000-cat-0.png", "00001-a-dog-on-blue-1.png", "00002-a-cow-2.png"]


def test_a_run_its_newest_checkpoint_and_its_file_are_the_same_lora(capsys, run, tmp_path):
    newest = run / "checkpoints/000002"
    by_run = draw(capsys, tmp_path / "run", "--lora", run, "--prompt", "cat")
    assert same(by_run, draw(capsys, tmp_path / "checkpoint", "--lora", newest, "--prompt", "cat"))
    assert same(by_run, draw(capsys, tmp_path / "file", "--lora", newest / LORA_FILE, "--prompt", "cat"))
    assert not same(by_run, draw(capsys, tmp_path / "first", "--lora", run / "checkpoints/000001", "--prompt", "cat"))


def test_the_scale_is_the_strength_of_the_lora(capsys, run, tiny_lcm, tmp_path):
    settings = ["--prompt", "cat", "--steps", "3", "--guidance", "4"]
    base = draw(capsys, tmp_path / "base", "--model", tiny_lcm, *settings)
    assert same(base, draw(capsys, tmp_path / "none", "--lora", run, "--scale", "0", *settings))
    whole = draw(capsys, tmp_path / "whole", "--lora", run, *settings)
    half = draw(capsys, tmp_path / "half", "--lora", run, "--scale", "0.5", *settings)
    assert not same(base, whole)
    assert not same(whole, half)


@pytest.mark.parametrize(("flag", "value"), [("--steps", "1"), ("--guidance", "9"), ("--seed", "1")])
def test_steps_guidance_and_seed_act(capsys, tiny_lcm, tmp_path, flag, value):
    asked = ["--model", tiny_lcm, "--prompt", "cat", "--steps", "3", "--guidance", "4", "--seed", "0"]
    first = draw(capsys, tmp_path / "first", *asked)
    assert same(first, draw(capsys, tmp_path / "again", *asked))
    assert not same(first, draw(capsys, tmp_path / "other", *asked, flag, value))


def test_a_lora_is_drawn_with_the_model_and_sampler_of_its_run(capsys, run, tiny_lcm, tmp_path):
    draw(capsys, tmp_path, "--lora", run, "--prompt", "cat")
    with Image.open(pictures(tmp_path)[0]) as picture:
        assert (picture.text["model"], picture.text["steps"]) == (tiny_lcm.name, "3")
        assert picture.text["guidance_scale"] == "4.0"


def test_json_names_the_pictures_folder_and_count(capsys, tiny_lcm, tmp_path):
    outcome = succeed(capsys, "generate", "--model", tiny_lcm, "--prompt", "cat", "--out", tmp_path, "--json")
    told = outcome.json_line()
    seconds, rate, each = (told.pop(key) for key in ("seconds", "images_per_second", "seconds_per_image"))
    files = [str(tmp_path / name) for name in ("00000-cat-0.png", "sheet.png")]
    assert told == {"files": files, "out": str(tmp_path), "images": 1}
    assert seconds == each == pytest.approx(1 / rate)
    assert 0 < seconds < 60


def test_the_last_line_says_how_fast_it_was(capsys, tiny_lcm, tmp_path):
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--count", "2", "--out", tmp_path]
    _, line = succeed(capsys, *asked).out.splitlines()
    assert re.search(r"contact sheet of 2 images in .* \([\d.e+-]+ images/s, [\d.e+-]+ s an image\)$", line)


def test_nothing_but_the_result_is_printed(capsys, run, tmp_path):
    """diffusers warns of the text encoder that a LoRA of ours has no layers for."""
    outcome = succeed(capsys, "generate", "--lora", run, "--prompt", "cat", "--out", tmp_path)
    assert [line.partition(" ")[0] for line in outcome.out.splitlines()] == ["loading", f"{tmp_path / 'sheet.png'}:"]
    assert outcome.err == ""


def test_what_is_no_lora_is_refused_with_what_would_be(capsys, tiny_lcm, tmp_path):
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--out", tmp_path / "out", "--lora"]
    text = tmp_path / "notes.safetensors"
    text.write_text("no LoRA")
    refuse(capsys, ModelError, *asked, text, saying=(str(text), "name a run, a checkpoint, a LoRA file"))
    refuse(capsys, ModelError, *asked, tiny_lcm, saying=(str(tiny_lcm), "holds no LoRA", LORA_FILE))
    weights = tiny_lcm / "vae/diffusion_pytorch_model.safetensors"
    refuse(capsys, ModelError, *asked, weights, saying=(str(weights),))
    refuse(capsys, ModelError, *asked, "some/where", saying=("'some/where'", "hub"))
    refuse(capsys, ConfigError, *asked, "nowhere", saying=("--lora nowhere", "OWNER/NAME"))
    assert not (tmp_path / "out").exists()


def test_a_run_without_checkpoints_is_no_lora(capsys, tiny_lcm, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--lora", tmp_path / "run"]
    refuse(capsys, MissingFileError, *asked, saying=(str(tmp_path / "run"), "holds no run yet"))


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--steps", "51"], ("51", "at most 50")),
        (["--seed", "-1"], ("--seed -1",)),
        (["--seed", str(2**63)], ("--seed",)),
        (["--guidance", "-1"], ("'guidance_scale'",)),
        (["--device", "cuda:99"], ("'cuda:99'", "--device cpu")),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_drawn(capsys, tiny_lcm, tmp_path, arguments, saying):
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--out", tmp_path / "out"]
    error = ModelError if "--device" in arguments else ConfigError
    refuse(capsys, error, *asked, *arguments, saying=saying)
    assert not (tmp_path / "out").exists()


def test_images_are_never_replaced_unless_that_is_asked_for(capsys, monkeypatch, tiny_lcm, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--steps", "1"]
    folders = [succeed(capsys, *command, "--json").json_line()["out"] for _ in range(3)]
    assert folders == ["outputs", "outputs-2", "outputs-3"]
    before = snapshot(tmp_path)
    saying = ("outputs/00000-cat-0.png and 1 more already exists", "--out", "--overwrite")
    refuse(capsys, ConfigError, *command, "--out", "outputs", "--count", "2", saying=saying)
    refuse(capsys, ConfigError, *command, "--prompt", "dog", "--seed", "7", "--out", "outputs", saying=("sheet.png",))
    assert snapshot(tmp_path) == before
    succeed(capsys, *command, "--guidance", "3", "--out", "outputs", "--overwrite")
    after = snapshot(tmp_path)
    assert after.keys() == before.keys()
    assert {file for file in after if after[file] != before[file]} == {"outputs/00000-cat-0.png", "outputs/sheet.png"}


def test_inspect_shows_how_a_picture_and_its_sheet_were_made(capsys, tiny_lcm, tmp_path):
    succeed(capsys, "generate", "--model", tiny_lcm, "--prompt", "a [red] cat", "--seed", "5", "--out", tmp_path / "a")
    told = succeed(capsys, "inspect", tmp_path / "a" / "00000-a-red-cat-5.png", "--json").json_line()
    assert (told["kind"], told["size"]) == ("picture", "16 × 16 pixels")
    assert (told["prompt"], told["seed"], told["sampler"]) == ("a [red] cat", "5", "lcm")
    assert "a [red] cat" in succeed(capsys, "inspect", tmp_path / "a" / "00000-a-red-cat-5.png").out
    assert succeed(capsys, "inspect", tmp_path / "a" / "sheet.png", "--json").json_line()["sheet_of"] == (
        "00000-a-red-cat-5.png"
    )
    info = PngInfo()
    info.add_text("comment", "\x1b[31mred")
    Image.new("RGB", (3, 2)).save(tmp_path / "other.png", pnginfo=info)
    shown = succeed(capsys, "inspect", tmp_path / "other.png").out
    assert "\\x1b[31mred" in shown
    Image.new("RGB", (3, 2)).save(tmp_path / "plain.png")
    assert "does not say how it was made" in succeed(capsys, "inspect", tmp_path / "plain.png").out
    (tmp_path / "text.png").write_text("no picture")
    takes = "text.png: is not a PNG; name a run, a checkpoint, a shard, a LoRA file or a PNG of any program"
    assert refuse(capsys, ConfigError, "inspect", tmp_path / "text.png", saying=(takes,)).endswith(takes)


def test_texts_of_a_picture_leave_the_rows_of_inspect_as_they_are(capsys, tmp_path):
    info = PngInfo()
    for key in ("kind", "size", "bytes", "faults", "author"):
        info.add_text(key, f"own {key}")
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert succeed(capsys, "inspect", tmp_path / "a.png", "--json").json_line() == {
        "kind": "picture",
        "size": "3 × 2 pixels",
        "text kind": "own kind",
        "text size": "own size",
        "text bytes": "own bytes",
        "text faults": "own faults",
        "author": "own author",
    }
    assert "own bytes" in succeed(capsys, "inspect", tmp_path / "a.png").out
