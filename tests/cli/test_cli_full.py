"""`--train full`: the U-Net itself is trained, and drawn with."""

import pytest
from command_line import checkpoints, refuse, rlcm, succeed, write_settings
from PIL import Image

from rlcm_cli.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def settings(tiny_lcm, tmp_path_factory):
    return write_settings(tmp_path_factory.mktemp("settings"), tiny_lcm, runtime={"iterations": 1})


def test_a_run_is_made_and_drawn_with(capsys, settings, tiny_lcm, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    succeed(capsys, "loop", "--config", settings, "--train", "full", "--no-cache", "--run", run)
    assert checkpoints(run) == [0, 1]
    assert (run / "checkpoints/000001/unet/config.json").is_file()
    succeed(capsys, "generate", "--lora", run, "--prompt", "cat", "--out", out)
    (picture,) = out.glob("*cat*.png")
    with Image.open(picture) as image:
        assert (image.text["model"], image.text["steps"]) == (tiny_lcm.name, "3")
    asked = ["generate", "--lora", run, "--prompt", "cat", "--out", tmp_path / "other"]
    refuse(
        capsys, ModelError, *asked, "--model", "emoji-lcm", saying=("unet/", "another than the model's", "same base")
    )
    refuse(capsys, ConfigError, *asked, "--scale", "0.5", saying=("--scale 0.5", "leave it out"))


@pytest.mark.parametrize("command", ["loop", "sample"])
def test_what_is_trained_is_a_setting_of_the_run(capsys, settings, tmp_path, command):
    asked = [command, "--config", settings, "--run", tmp_path / "run"]
    refuse(capsys, ConfigError, *asked, "--train", "all", saying=("train.parameters", "'lora' or 'full'"))
    refuse(capsys, ConfigError, *asked, "--train", "full", "--dtype", "bfloat16", saying=("model.dtype to float32",))
    assert not (tmp_path / "run").exists()


def test_a_lora_is_trained_unless_asked_otherwise(capsys, settings, tmp_path):
    for flags, expected in (((), "lora"), (("--train", "full"), "full")):
        outcome = rlcm(capsys, "loop", "--config", settings, "--run", tmp_path / "run", "--dry-run", "--json", *flags)
        assert outcome.json_line()["config"]["train"]["parameters"] == expected
