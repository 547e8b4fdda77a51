"""`rlcm generate --from-image`: a picture drawn again from what it says of itself, and what it cannot make rlcm do."""

from __future__ import annotations

import getpass
import shutil
from pathlib import Path

import pytest
from command_line import LORA_FILE, refuse, succeed, write_settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from recorded_pictures import rewrite, texts_of

from rlcm_cli.cli.app import main
from rlcm_cli.errors import ConfigError, CorruptFileError, ModelError

REWARD = "def score(images, prompts, metadata):\n    return images[:, 0].float().mean((1, 2))\n"


@pytest.fixture(scope="module")
def home(tiny_lcm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/mine`, whose reward is code, and three pictures of it drawn together in `outputs`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "reward.py").write_text(REWARD)
    settings = write_settings(folder, tiny_lcm, train={"learning_rate": 0.05}, runtime={"iterations": 1})
    run = folder / "runs/mine"
    asked = ["loop", "--config", settings, "--run", run, "--reward", f"{folder}/reward.py:score", "--quiet"]
    drawn = [
        "generate",
        "--lora",
        run,
        "--prompt",
        "a cat",
        "--count",
        "3",
        "--seed",
        "4",
        "--out",
        folder / "outputs",
    ]
    for arguments in (asked, [*drawn, "--scale", "0.7", "--guidance", "3.3", "--steps", "2"]):
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        assert not leaving.value.code
    return folder


@pytest.fixture
def picture(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The second of the three, as a user in the folder names it."""
    monkeypatch.chdir(home)
    return Path("outputs/00001-a-cat-5.png")


def test_the_same_file_is_drawn_again(capsys, picture, tmp_path):
    succeed(capsys, "generate", "--from-image", picture, "--out", tmp_path)
    assert (tmp_path / "00000-a-cat-5.png").read_bytes() == picture.read_bytes()


def test_it_goes_to_a_folder_of_its_own_and_never_over_the_picture(capsys, picture, tmp_path):
    first = picture.with_name("00000-a-cat-4.png")
    before = first.read_bytes()
    refuse(capsys, ConfigError, "generate", "--from-image", first, "--out", "outputs", saying=("--out", str(first)))
    outcome = succeed(capsys, "generate", "--from-image", first, "--steps", "3")
    assert "outputs/again/sheet.png" in outcome.out
    assert first.read_bytes() == before


def test_the_embedded_model_alone_is_drawn_again(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    succeed(capsys, "generate", "--prompt", "a cat", "--steps", "1")
    succeed(capsys, "generate", "--from-image", "outputs/00000-a-cat-0.png")
    again = tmp_path / "outputs/again/00000-a-cat-0.png"
    assert again.read_bytes() == (tmp_path / "outputs/00000-a-cat-0.png").read_bytes()


def test_options_change_what_they_name_and_nothing_else(capsys, picture, tmp_path):
    told = texts_of(picture)
    changed = {"--steps": "3", "--scale": "0", "--guidance": "2.0", "--seed": "8", "--prompt": "dog"}
    keys = ("steps", "lora_scale", "guidance_scale", "seed", "prompt")
    for (flag, value), key in zip(changed.items(), keys, strict=True):
        folder = tmp_path / key
        succeed(capsys, "generate", "--from-image", picture, flag, value, "--out", folder)
        (file,) = folder.glob("0*.png")
        different = {name for name, text in texts_of(file).items() if told[name] != text}
        assert different == {key}
        assert float(texts_of(file)[key]) == float(value) if key != "prompt" else texts_of(file)[key] == value


def test_several_values_make_a_sheet_of_it(capsys, picture, tmp_path):
    succeed(capsys, "generate", "--from-image", picture, "--steps", "1,2", "--compare-base", "--out", tmp_path)
    names = {f"00000-a-cat-5-{name}-steps{steps}.png" for name in ("base", "mine-checkpoint-1") for steps in (1, 2)}
    assert {file.name for file in tmp_path.glob("0*.png")} == names


def test_no_picture_tells_a_path_or_a_user(home):
    files = [*(home / "outputs").rglob("*.png")]
    assert files
    told = [str(home), str(Path.home()), "/tmp", home.name]  # noqa: S108
    told += [getpass.getuser()] * (len(getpass.getuser()) > 3)
    for file in files:
        content = file.read_bytes()
        assert not [text for text in told if text.encode() in content]


def test_a_lora_that_moved_is_pointed_to(capsys, home, picture, tmp_path, monkeypatch):
    copy = shutil.copytree(home / "runs/mine", tmp_path / "elsewhere/mine")
    picture = picture.resolve()
    monkeypatch.chdir(tmp_path)
    asked = ["generate", "--from-image", picture, "--out", tmp_path / "out"]
    refuse(capsys, ModelError, *asked, saying=(f"mine/checkpoints/000001/{LORA_FILE}", "not here", "--lora"))
    succeed(capsys, *asked, "--lora", copy)
    assert (tmp_path / "out/00000-a-cat-5.png").read_bytes() == picture.read_bytes()


def test_a_lora_that_is_another_by_now_is_told(capsys, home, picture, tmp_path, monkeypatch):
    run, picture = tmp_path / "runs/mine", picture.resolve()
    succeed(capsys, "loop", "--config", home / "settings.toml", "--seed", "1", "--run", run, "--quiet")
    place = run / f"checkpoints/000001/{LORA_FILE}"
    monkeypatch.chdir(tmp_path)
    asked = ["generate", "--from-image", picture, "--out", tmp_path / "out"]
    refuse(capsys, ModelError, *asked, saying=("another by now", "runs/mine", "digest", "point to it with --lora"))
    outcome = succeed(capsys, *asked, "--lora", place)
    assert "warning" in outcome.out
    assert "another LoRA" in outcome.out


def test_a_lora_that_is_damaged_is_told(capsys, home, picture, tmp_path, monkeypatch):
    place = shutil.copytree(home / "runs/mine", tmp_path / "runs/mine") / f"checkpoints/000001/{LORA_FILE}"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    picture = picture.resolve()
    monkeypatch.chdir(tmp_path)
    asked = ["generate", "--from-image", picture, "--out", tmp_path / "out"]
    refuse(capsys, CorruptFileError, *asked, saying=(str(place), "is not the file that was published", "quarantine"))


def test_a_model_folder_that_is_not_here_is_pointed_to(capsys, tiny_lcm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeed(capsys, "generate", "--model", tiny_lcm, "--prompt", "cat")
    asked = ["generate", "--from-image", "outputs/00000-cat-0.png"]
    refuse(capsys, ModelError, *asked, saying=(tiny_lcm.name, "not here", "point to it with --model"))
    succeed(capsys, *asked, "--model", tiny_lcm)
    first, again = (tmp_path / place / "00000-cat-0.png" for place in ("outputs", "outputs/again"))
    assert first.read_bytes() == again.read_bytes()


def test_what_rlcm_did_not_draw_is_refused(capsys, picture, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("no picture")
    other = PngInfo()
    other.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a")
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png", pnginfo=other)
    for file, words in {
        "plain.png": "has no generation metadata",
        "other.png": "has no generation metadata",
        "photo.jpg": "is not a PNG",
        "text.png": "is not a PNG",
        "gone.png": "no such file",
    }.items():
        refuse(capsys, ConfigError, "generate", "--from-image", tmp_path / file, saying=(file, words))
    sheet = picture.with_name("sheet.png")
    refuse(capsys, ConfigError, "generate", "--from-image", sheet, saying=("has no generation metadata",))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": "one"}, "'one'"),
        ({"steps": "-2"}, "'steps'"),
        ({"dtype": "float8"}, "'dtype'"),
    ],
)
def test_what_a_picture_cannot_say_is_refused(capsys, picture, tmp_path, changed, words):
    file = rewrite(picture, tmp_path / "changed.png", **changed)
    refuse(capsys, ConfigError, "generate", "--from-image", file, "--out", tmp_path / "out", saying=(words,))
    assert not (tmp_path / "out").exists()


def test_no_code_of_the_lora_s_run_is_run(capsys, home, picture, tmp_path):
    """Its configuration names a reward that is code; drawing asks for no reward."""
    marker = tmp_path / "ran"
    code = home / "reward.py"
    code.write_text(f"open({str(marker)!r}, 'w').close()\n{REWARD}")
    try:
        succeed(capsys, "generate", "--from-image", picture, "--out", tmp_path / "out")
    finally:
        code.write_text(REWARD)
    assert not marker.exists()


def test_the_settings_of_other_weights_are_used_with_a_warning(capsys, picture, tmp_path):
    file = rewrite(picture, tmp_path / "changed.png", model_digest="0" * 64)
    outcome = succeed(capsys, "generate", "--from-image", file, "--out", tmp_path / "out")
    assert "model's files are others" in outcome.out
