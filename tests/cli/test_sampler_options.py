"""The options that the settings of the samplers make: shown, completed, and refused where another sampler draws."""

from __future__ import annotations

import pytest
from command_line import refuse, succeed
from PIL import Image

from rlcm_cli.cli.sampler_options import make_sampler_options
from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import SAMPLERS


def test_there_is_one_for_every_setting_with_a_help_text():
    options = {option.name: option for option in make_sampler_options()}
    assert set(options) == {name for sampler in SAMPLERS.values() for name in sampler.setting_names}
    assert all(option.help and option.help.startswith("For ") for option in options.values())
    assert options["original_steps"].opts == ["--original-steps"]
    assert options["spacing"].help.startswith("For lcm and tcd: which of the distillation's timesteps")


def test_help_shows_them_within_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = succeed(capsys, "generate", "--help").out
    assert all(option.opts[0] in shown for option in make_sampler_options())
    assert "[default: (the LoRA's, or 0.3)]" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (["--gamma", "0.3"], "unknown key 'gamma' of the kind 'lcm': it belongs to 'tcd'"),
        (["--spacing", "wide"], "'spacing' is \"wide\": input should be 'diffusers' or 'strided'"),
        (["--original-steps", "many"], "'original_steps' is \"many\": input should be a valid integer"),
        (["--sampler", "lmc"], "there is no sampler 'lmc' (did you mean 'lcm'?)"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(capsys, tiny_lcm, tmp_path, options, saying):
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--out", tmp_path / "out", *options]
    refuse(capsys, ConfigError, *asked, saying=(saying,))
    assert not (tmp_path / "out").exists()


def test_they_reach_the_images(capsys, tiny_lcm, tmp_path):
    asked = ["generate", "--model", tiny_lcm, "--prompt", "cat", "--out", tmp_path / "out"]
    succeed(capsys, *asked, "--spacing", "strided", "--original-steps", "40", "--steps", "3")
    (file,) = (tmp_path / "out").glob("0*.png")
    with Image.open(file) as picture:
        told = picture.info
    assert (told["spacing"], told["original_steps"]) == ("strided", "40")
