"""Options that are derived from the settings of the configuration."""

from __future__ import annotations

import pytest
import typer.main
from command_line import refuse, succeed

from rlcm_cli.cli.app import app
from rlcm_cli.cli.setting_options import FLAGS, SettingCommand, make_setting_options
from rlcm_cli.config import Config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import OBJECTIVES
from rlcm_cli.sections import settings_of

OPTIONS = {option.opts[0]: option for option in make_setting_options(tuple(FLAGS))}
DERIVED = {
    name: command
    for name, command in typer.main.get_command(app).commands.items()
    if isinstance(command, SettingCommand) and command.keys
}
DRY = ("loop", "--task", "compression", "--dry-run", "--json")


def test_each_sets_a_setting_that_there_is():
    assert set(FLAGS) <= set(settings_of(Config))
    assert all(key in FLAGS for command in DERIVED.values() for key in command.keys)


def test_each_has_a_sentence_of_help_and_what_is_not_the_option_s_is_the_field_s():
    assert all(len(option.help) > 10 and option.help.endswith(".") for option in OPTIONS.values())
    assert OPTIONS["--samples"].help == "Images per iteration."
    assert OPTIONS["--objective"].help == f"Training objective: {', '.join(OBJECTIVES)}."


def test_each_shows_the_type_of_its_setting():
    found = [OPTIONS[name].metavar for name in ("--samples", "--kl", "--on-hacking")]
    assert found == ["N", "X", "warn|stop"]
    assert [name for name, option in OPTIONS.items() if option.multiple] == ["--monitor", "--log-with"]


@pytest.mark.parametrize("name", sorted(DERIVED))
def test_help_shows_those_of_a_command(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    shown = succeed(capsys, name, "--help").out
    assert all(f" {FLAGS[key].name} " in shown for key in DERIVED[name].keys)


def test_they_reach_the_configuration(capsys):
    options = ("--samples", "32", "--kl", "0.5", "--size", "64x32", "--objective", "rwr", "--log-with", "wandb")
    config = succeed(capsys, *DRY, *options).json_line()["config"]
    assert (config["sample"]["samples"], config["train"]["kl_weight"]) == (32, 0.5)
    assert (config["model"]["image_size"], config["objective"]["kind"]) == ("64x32", "rwr")
    assert config["runtime"]["log_with"] == ["wandb"]


def test_what_is_not_given_stays_the_preset_s(capsys):
    config = succeed(capsys, *DRY, "--set", "monitor.rewards=['sharpness']").json_line()["config"]
    assert config["monitor"]["rewards"] == ["sharpness"]


def test_a_reward_to_monitor_that_is_given_twice_counts_once(capsys):
    config = succeed(capsys, *DRY, "--monitor", "sharpness", "--monitor", "sharpness").json_line()["config"]
    assert config["monitor"]["rewards"] == ["sharpness"]


@pytest.mark.parametrize(
    ("options", "saying"),
    [
        (["--samples", "many"], ("'--samples'", "integer", "`rlcm loop --help`")),
        (["--on-hacking", "wrn"], ("'monitor.on_hacking'", "did you mean 'warn'?")),
        (["--train", "ful"], ("'train.parameters'", "did you mean 'full'?")),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_one_line(capsys, options, saying):
    refuse(capsys, ConfigError, *DRY, *options, saying=saying)
