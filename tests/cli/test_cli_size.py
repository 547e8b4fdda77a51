"""`--size WIDTHxHEIGHT`: images that are not square, from their first draw to an export that is loaded back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import refuse, rlcm, succeed, write_settings
from PIL import Image
from safetensors.torch import load_file

from rlcm_cli.cli.app import main
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.pictures.export import RECORD_FILE
from rlcm_cli.rewards import RewardSpec, load_reward

WIDTH, HEIGHT = 32, 16
SIZE = f"{WIDTH}x{HEIGHT}"


@pytest.fixture(scope="module")
def run(tiny_lcm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("size")
    settings = write_settings(folder, tiny_lcm, train={"learning_rate": 0.03})
    words = ["loop", "--config", settings, "--run", folder / "run", "--size", SIZE, "--quiet"]
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert not leaving.value.code
    return folder / "run"


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_a_run_draws_scores_trains_and_evaluates_images_of_that_size(run):
    assert json.loads((run / "config.json").read_text())["config"]["model"]["image_size"] == SIZE
    shard = load_file(next((run / "rollouts/000001").glob("shard-*.safetensors")))
    assert shard["images"].shape[1:] == (3, HEIGHT, WIDTH)
    assert shard["latents"].shape[-2] * WIDTH == shard["latents"].shape[-1] * HEIGHT
    evaluation = load_file(next((run / "evaluations/000002").glob("*.safetensors")))
    assert evaluation["images"].shape[1:] == (3, HEIGHT, WIDTH)
    metrics = json.loads((run / "metrics/000002.json").read_text())
    assert metrics["ratio_drift"] < 2e-6
    assert metrics["updates"] == 1


def test_its_reports_and_its_sheets_show_them(run, capsys, tmp_path):
    succeed(capsys, "report", run, "--out", tmp_path / "report.html", "-q")
    assert (tmp_path / "report.html").stat().st_size
    succeed(capsys, "generate", "--lora", run, "--prompt", "cat", "--count", 3, "--out", tmp_path / "drawn", "-q")
    pictures = sorted((tmp_path / "drawn").glob("0*.png"))
    assert [size_of(file) for file in pictures] == [(WIDTH, HEIGHT)] * 3
    width, height = size_of(tmp_path / "drawn/sheet.png")
    assert width > 3 * WIDTH
    assert HEIGHT < height < 2 * HEIGHT

    # A picture says its size, and is drawn again in it.
    again = tmp_path / "again"
    succeed(capsys, "generate", "--from-image", pictures[1], "--lora", run, "--out", again, "-q")
    (drawn,) = again.glob("0*.png")
    assert Image.open(drawn).tobytes() == Image.open(pictures[1]).tobytes()

    # Two axes, and a size of another command's.
    words = ["--lora", run, "--prompt", "cat", "--scale", "0,1", "--steps", "1,2", "--size", "16x24"]
    succeed(capsys, "generate", *words, "--out", tmp_path / "axes", "-q")
    assert {size_of(file) for file in (tmp_path / "axes").glob("0*.png")} == {(16, 24)}


@pytest.mark.parametrize("form", ["diffusers", "kohya", "pipeline"])
def test_an_export_says_its_size_and_reproduces_the_images(run, capsys, tmp_path, form):
    succeed(capsys, "export", run, "--format", form, "--out", tmp_path / form, "-q")
    record = json.loads((tmp_path / form / RECORD_FILE).read_text())
    assert (record["call"]["width"], record["call"]["height"]) == (WIDTH, HEIGHT)
    assert record["verification"]["largest"] <= 2
    card = (tmp_path / form / "README.md").read_text()
    assert f"width={WIDTH}" in card
    assert f"height={HEIGHT}" in card


def test_it_is_measured(tiny_lcm, capsys):
    words = ["--model", tiny_lcm, "--seconds", 0, "--batch", 1, "--steps", 2]
    found = rlcm(capsys, "bench", *words, "--size", SIZE, "--memory-budget", "1GB", "--json", "-q").json_line()
    assert found["image_size"] == [HEIGHT, WIDTH]


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        ("32x", ConfigError, "WIDTHxHEIGHT, such as 768x1024"),
        ("0x16", ConfigError, "WIDTHxHEIGHT, such as 768x1024"),
        ("large", ConfigError, "WIDTHxHEIGHT, such as 768x1024"),
        ("32x17", ModelError, "images of 32 x 17 pixels: this model's are multiples of"),
    ],
)
def test_a_size_that_cannot_be_is_refused(tiny_lcm, capsys, tmp_path, size, kind, words):
    settings = write_settings(tmp_path, tiny_lcm)
    refuse(capsys, kind, "loop", "--config", settings, "--run", tmp_path / "run", "--size", size, saying=(words,))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "compressibility",
        "incompressibility",
        "brightness",
        "colourfulness",
        "sharpness",
        "mirror_symmetry",
        "rotational_symmetry",
    ],
)
def test_rewards_of_pixels_take_images_that_are_not_square(name):
    images = torch.randint(0, 256, (4, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = load_reward(RewardSpec(name)).score(images, ["cat"] * 4, [{} for _ in range(4)])
    assert values.isfinite().all()
    assert len(set(values.tolist())) == 4
