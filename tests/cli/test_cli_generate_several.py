"""`rlcm generate` with several LoRAs, scales, steps, and tables: what is drawn, how it is named and laid out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import refuse, succeed, write_settings
from PIL import Image

from rlcm_cli.cli.app import main
from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.csv_batch import read_rows


@pytest.fixture(scope="module")
def runs(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `first` and `second`, whose adapters visibly act and differ."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("first", 0.05), ("second", 0.1)):
        settings = write_settings(folder, tiny_lcm, train={"learning_rate": rate}, runtime={"iterations": 1})
        with pytest.raises(SystemExit) as leaving:
            main(["loop", "--config", str(settings), "--run", str(folder / name), "--quiet"])
        assert not leaving.value.code
    return folder


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def draw(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> dict[str, np.ndarray]:
    """Generate into a new folder; give the images by the names of their files."""
    succeed(capsys, "generate", "--out", folder, "--prompt", "cat", *arguments)
    return {file.name: pixels(file) for file in sorted(folder.glob("0*.png"))}


def test_several_steps_are_columns_and_each_is_what_it_is_alone(capsys, runs, tmp_path):
    drawn = draw(capsys, tmp_path / "sweep", "--lora", runs / "first", "--steps", "1,2,4", "--seed", "3")
    assert list(drawn) == [f"00000-cat-3-steps{steps}.png" for steps in (1, 2, 4)]
    for steps in (1, 2, 4):
        (alone,) = draw(
            capsys, tmp_path / str(steps), "--lora", runs / "first", "--steps", steps, "--seed", "3"
        ).values()
        assert np.array_equal(drawn[f"00000-cat-3-steps{steps}.png"], alone)
    sheet = pixels(tmp_path / "sweep/sheet.png")
    for after, image in enumerate(reversed(drawn.values())):  # 16 pixels are magnified to 128
        right = sheet.shape[1] - 10 - 133 * after
        assert np.array_equal(sheet[-138:-10, right - 128 : right], np.kron(image, np.ones((8, 8, 1), np.uint8)))


def test_the_base_is_drawn_beside_with_the_same_seeds(capsys, runs, tiny_lcm, tmp_path):
    settings = ["--steps", "3", "--guidance", "4", "--count", "2"]
    drawn = draw(capsys, tmp_path / "both", "--lora", runs / "first", "--compare-base", *settings)
    assert list(drawn) == [f"0000{seed}-cat-{seed}-{name}.png" for seed in (0, 1) for name in ("base", "first")]
    base = draw(capsys, tmp_path / "base", "--model", tiny_lcm, *settings)
    trained = draw(capsys, tmp_path / "first", "--lora", runs / "first", *settings)
    for seed in (0, 1):
        assert np.array_equal(drawn[f"0000{seed}-cat-{seed}-base.png"], base[f"0000{seed}-cat-{seed}.png"])
        assert np.array_equal(drawn[f"0000{seed}-cat-{seed}-first.png"], trained[f"0000{seed}-cat-{seed}.png"])
    with Image.open(tmp_path / "both/00000-cat-0-base.png") as picture:
        assert "lora" not in picture.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_of_0_is_the_base_to_the_byte(capsys, runs, tmp_path, dtype):
    """After another scale, too, whose weights must leave nothing behind."""
    asked = ["--lora", runs / "first", "--scale", "1,0,-0.5", "--compare-base", "--dtype", dtype]
    drawn = {name.split("cat-0-")[1]: image for name, image in draw(capsys, tmp_path, *asked).items()}
    assert set(drawn) == {"base.png", "scale1.png", "scale0.png", "scale-0.5.png"}
    assert np.array_equal(drawn["scale0.png"], drawn["base.png"])
    for name in ("scale1.png", "scale-0.5.png"):
        assert np.abs(drawn[name].astype(int) - drawn["base.png"]).max() > 3
    assert not np.array_equal(drawn["scale1.png"], drawn["scale-0.5.png"])


def test_a_lora_leaves_nothing_behind_for_the_next(capsys, runs, tmp_path):
    both = draw(capsys, tmp_path / "both", "--lora", runs / "first", "--lora", runs / "second")
    for name in ("first", "second"):
        (alone,) = draw(capsys, tmp_path / name, "--lora", runs / name).values()
        assert np.array_equal(both[f"00000-cat-0-{name}.png"], alone)
    assert not np.array_equal(both["00000-cat-0-first.png"], both["00000-cat-0-second.png"])


def test_two_axes_are_rows_and_columns_and_the_base_of_all_loras_is_drawn_once(capsys, runs, tmp_path):
    loras = ["--lora", runs / "first", "--lora", runs / "first/checkpoints/000001"]
    drawn = draw(capsys, tmp_path, *loras, "--scale", "0.5,1", "--compare-base")
    assert len(drawn) == 5
    assert "00000-cat-0-first-base.png" in drawn
    assert "00000-cat-0-first-checkpoint-1-scale0.5.png" in drawn


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--lora", "first", "--lora", "second", "--scale", "0,1", "--steps", "1,2"], ("--steps", "two axes")),
        (["--lora", "first", "--scale", "0,x"], ("--scale 0,x", "'x' is not a number", "0,0.5,1")),
        (["--lora", "first", "--scale", "nan"], ("'nan' is not a number",)),
        (["--steps", "2.5"], ("--steps 2.5", "whole number", "1,2,4")),
        (["--steps", "2,"], ("'' is not a whole number",)),
        (["--steps", "2,51"], ("51", "at most 50")),
        (["--scale", "0.5"], ("--scale", "name one with --lora")),
        (["--compare-base"], ("--compare-base", "name one with --lora")),
    ],
)
def test_what_makes_no_sheet_is_refused_before_anything_is_drawn(
    capsys, monkeypatch, runs, tiny_lcm, tmp_path, arguments, saying
):
    monkeypatch.chdir(runs)
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--out", tmp_path / "out"]
    refuse(capsys, ConfigError, *asked, *arguments, saying=saying)
    assert not (tmp_path / "out").exists()


# Tables


def write_table(folder: Path, text: str) -> Path:
    file = folder / "table.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_table_is_drawn_row_by_row(capsys, monkeypatch, runs, tiny_lcm, tmp_path):
    monkeypatch.chdir(runs)
    table = write_table(
        tmp_path,
        "prompt,seed,steps,scale,lora\n"
        "cat,9,,,first\n"
        '"a dog, red",,2,,\n'  # seed 0 + 1, the model as it is
        "cat,9,,0.5,first\n"
        "cat,9,,,second\n"
        "cow,7,2,,\n",
    )
    succeed(capsys, "generate", "--batch", table, "--model", tiny_lcm, "--out", tmp_path / "out")
    names = ["00000-cat-9", "00001-a-dog-red-1", "00002-cat-9", "00003-cat-9", "00004-cow-7"]
    drawn = [pixels(tmp_path / f"out/{name}.png") for name in names]
    sheet = pixels(tmp_path / "out/sheet.png")
    for number, image in enumerate(drawn):
        assert np.array_equal(sheet[2:18, 2 + 18 * number : 18 + 18 * number], image)
    for number, asked in {
        0: ["--lora", "first", "--seed", "9"],
        2: ["--lora", "first", "--scale", "0.5", "--seed", "9"],
        3: ["--lora", "second", "--seed", "9"],
    }.items():
        (alone,) = draw(capsys, tmp_path / str(number), "--model", tiny_lcm, *asked).values()
        assert np.array_equal(drawn[number], alone)
    with Image.open(tmp_path / "out/00004-cow-7.png") as picture:
        told = picture.text
    assert (told["steps"], told["batch"]) == ("2", "2/2")  # drawn together with the dog


def test_the_command_s_options_are_for_empty_cells(capsys, runs, tmp_path):
    table = write_table(tmp_path, "prompt,scale,guidance\ncat,,\ncat,1,2\n")
    options = ["--lora", runs / "first", "--scale", "0.5", "--steps", "2", "--guidance", "3", "--seed", "5"]
    succeed(capsys, "generate", "--batch", table, "--out", tmp_path, *options)
    told = []
    for name in ("00000-cat-5.png", "00001-cat-6.png"):
        with Image.open(tmp_path / name) as picture:
            told.append([picture.text[key] for key in ("lora_scale", "guidance_scale", "steps")])
    assert told == [["0.5", "3.0", "2"], ["1.0", "2.0", "2"]]


def test_a_table_may_be_saved_by_windows_and_numbered_by_pandas(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes(",prompt,seed\r\n0,a cat,3\r\n1,B\u00e4r,\r\n,,\r\n".encode("utf-16"))
    assert read_rows(file) == [("line 2", {"prompt": "a cat", "seed": 3}), ("line 3", {"prompt": "B\u00e4r"})]


@pytest.mark.parametrize("prompt", ["a\udcff cat", "a\0cat"])
def test_a_prompt_that_is_no_text_is_refused(capsys, tmp_path, prompt):
    refuse(
        capsys, ConfigError, "generate", "--prompt", prompt, "--out", tmp_path / "out", saying=("write it in UTF-8",)
    )


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("prompt,stps\ncat,2\n", ("line 1", "'stps'", "did you mean 'steps'?")),
        ("prompt,model\ncat,x\n", ("line 1", "'model'", "the columns are prompt, seed")),
        ("prompt,prompt\ncat,cat\n", ("line 1", "twice")),
        ("seed\n2\n", ("line 1", "no column 'prompt'")),
        ("", ("no column 'prompt'",)),
        ("prompt\n", ("has no rows",)),
        ("prompt,seed\ncat,1\n,2\n", ("line 3", "has no prompt")),
        ("prompt,seed\ncat,x\n", ("line 2", "seed 'x' is not a whole number")),
        ("prompt,seed\ncat,-1\n", ("line 2", "--seed -1")),
        ("prompt,guidance\ncat,inf\n", ("line 2", "guidance 'inf' is not a number")),
        ("prompt,guidance\ncat,-1\n", ("line 2", "guidance_scale")),
        ("prompt,steps\ncat,99\n", ("99", "at most 50")),
        ("prompt\na cat, red\n", ("line 2", "quote")),
        ("prompt,scale\ncat,1\n", ("line 2", "--lora")),
        ("prompt,lora\ncat,nowhere\n", ("line 2", "nowhere", "OWNER/NAME")),
        ('prompt\n"cat\n', ("CSV",)),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(capsys, tiny_lcm, tmp_path, text, saying):
    table = write_table(tmp_path, text)
    asked = ["generate", "--batch", table, "--model", tiny_lcm, "--out", tmp_path / "out"]
    refuse(capsys, ConfigError, *asked, saying=(*saying, *([str(table)] if text and "99" not in text else [])))
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_no_text_or_not_there_is_refused(capsys, tiny_lcm, tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"prompt\n\xff\xfe\n")
    refuse(capsys, ConfigError, "generate", "--batch", tmp_path / "binary.csv", saying=("not UTF-8 text (line 2",))
    refuse(capsys, ConfigError, "generate", "--batch", tmp_path / "gone.csv", saying=("gone.csv is not there",))


@pytest.mark.parametrize(
    "arguments",
    [["--steps", "1,2"], ["--count", "2"], ["--prompt", "cat"], ["--compare-base"], ["--from-image", "x.png"]],
)
def test_a_table_says_all_by_itself(capsys, tmp_path, arguments):
    table = write_table(tmp_path, "prompt\ncat\n")
    refuse(capsys, ConfigError, "generate", "--batch", table, *arguments, saying=(arguments[0], "--batch"))
