"""A mistake in a command is one clear line, and leaves nothing behind that blocks the corrected command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import LORA_FILE, checkpoints, refuse, rlcm, snapshot, succeed, write_settings
from conftest import edit_config

from rlcm_cli.errors import ConfigError, MissingFileError, ModelError, RewardError, RlcmError, RunMismatchError
from rlcm_cli.rewards import REWARDS, RewardEntry


@pytest.fixture
def settings(tiny_lcm: Path, tmp_path: Path) -> Path:
    """A file for --config that trains the tiny model."""
    return write_settings(tmp_path, tiny_lcm)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where a run may be made."""
    return tmp_path / "run"


WRONG: dict[str, tuple[list[str], type[RlcmError], tuple[str, ...]]] = {
    "reward": (
        ["--set", "rewards={compresibility=1}"],
        ConfigError,
        ("'compresibility'", "did you mean 'compressibility'?"),
    ),
    "key": (["--set", "sample.stps=3"], ConfigError, ("'sample.stps'", "did you mean 'sample.steps'?")),
    "type": (["--set", "sample.steps=three"], ConfigError, ("'sample.steps'", '"three"')),
    "prompt set": (
        ["--set", "prompts.source=simple_animal"],
        ConfigError,
        ("'simple_animal'", "did you mean 'simple_animals'?"),
    ),
    "prompt file": (["--set", "prompts.source=gone.txt"], ConfigError, ("'gone.txt'", "check the path")),
    "one step": (["--steps", "1"], ConfigError, ("sample.steps is 1", "--steps 2 or more")),
    "too many steps": (["--steps", "51"], ConfigError, ("sample.steps is 51", "at most 50")),
    "long schedule": (["--set", "sampler.original_steps=1001"], ConfigError, ("1001", "1000 timesteps")),
    "local model": (["--model", "nowhere"], ModelError, ("'nowhere'", "--model emoji-lcm")),
    "hub unreachable": (["--model", "nowhere/at-all"], ModelError, ("'nowhere/at-all'", "--model emoji-lcm")),
    "sampler": (["--set", "sampler.kind=ddim"], ModelError, ("latent consistency model", "--sampler lcm")),
    "no noise": (
        ["--model", "emoji-diffusion", "--set", "sampler={kind='ddim', eta=0}"],
        ConfigError,
        ("sampler.eta is 0", "no action to train"),
    ),
    "last step": (
        ["--model", "emoji-diffusion", "--sampler", "ddim", "--set", "last_step.mode=noise"],
        ConfigError,
        ("last_step.mode noise", "sampler ddim"),
    ),
    "no GPU": (["--device", "cuda:99"], ModelError, ("'cuda:99'", "--device cpu")),
    "no device": (["--device", "gpu"], ModelError, ("'gpu'", "--device cpu")),
    "no dtype": (["--dtype", "float"], ConfigError, ("'model.dtype'", "bfloat16")),
    "no start": (["--from", "nowhere"], ConfigError, ("--from nowhere", "no such run, checkpoint or LoRA file")),
    "start set": (["--set", "lora.start=nowhere"], ConfigError, ("lora.start", "nowhere")),
    "LoRA modules": (["--set", 'lora.target_modules=["nope"]'], ModelError, ("lora.target_modules", "nope")),
}
OTHER_SAMPLERS = ("sampler", "no noise", "last step")
"""Mistakes that choose another sampler than the settings have, whose settings of the other are told to be left out."""


@pytest.mark.parametrize("command", ["loop", "sample"])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_makes_no_run_directory(capsys, settings, run, command, mistake):
    arguments, error, saying = WRONG[mistake]
    notes = int(mistake in OTHER_SAMPLERS)
    refuse(capsys, error, command, "--config", settings, "--run", run, *arguments, saying=saying, notes=notes)
    assert not run.exists()


@pytest.mark.parametrize("mistake", ["reward", "local model", "LoRA modules"])
def test_the_corrected_command_works_in_the_same_place(capsys, settings, run, mistake):
    assert rlcm(capsys, "sample", "--config", settings, "--run", run, *WRONG[mistake][0]).status != 0
    succeed(capsys, "sample", "--config", settings, "--run", run)


def test_an_empty_prompt_file(capsys, settings, run, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# nothing\n", encoding="utf-8")
    asked = ["loop", "--config", settings, "--run", run, "--set", f"prompts.source={empty}"]
    refuse(capsys, ConfigError, *asked, saying=(str(empty), "there is no prompt in it"))
    assert not run.exists()


def test_a_start_of_another_shape_is_refused_before_the_run_is_made(capsys, settings, run, tmp_path):
    other = tmp_path / "other"
    succeed(capsys, "sample", "--config", settings, "--run", other)
    asked = ["loop", "--config", settings, "--run", run, "--set", f"lora.start={other}", "--set", "lora.rank=3"]
    refuse(capsys, ConfigError, *asked, saying=("lora.start", "rank 2", "set [lora]"))
    assert not run.exists()


def test_a_start_that_is_no_lora(capsys, settings, run, tmp_path):
    file = tmp_path / LORA_FILE
    file.write_bytes(b"no LoRA")
    asked = ["loop", "--config", settings, "--run", run, "--from", file]
    refuse(capsys, ModelError, *asked, saying=(str(file), "not a readable safetensors file"))
    assert not run.exists()


def test_a_dry_run_prints_what_the_run_will_save_and_makes_nothing(capsys, settings, run):
    asked = ["loop", "--config", settings, "--run", run, "--set", "runtime.iterations=1", "--seed", "9"]
    shown = succeed(capsys, *asked, "--dry-run", "--json").json_line()["config"]
    assert not run.exists()
    assert (shown["seed"], shown["runtime"]["iterations"], shown["sample"]["samples"]) == (9, 1, 4)
    succeed(capsys, *asked)
    assert json.loads((run / "config.json").read_text())["config"] == shown


def test_a_dry_run_refuses_an_unknown_reward(capsys):
    asked = ["loop", "--task", "compression", "--dry-run", "--set", "rewards={compresibility=1}"]
    refuse(capsys, ConfigError, *asked, saying=("did you mean 'compressibility'?",))


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["loop"], ("no task given", "--task NAME", "`rlcm tasks`")),
        (["loop", "--task", "compresion"], ("'compresion'", "did you mean 'compression'?")),
        (["loop", "--config", "gone.toml"], ("--config gone.toml", "no such file")),
        (["sample", "--task", "compression", "--worker", "4/4"], ("--worker 4/4", "0/4")),
        (["sample", "--task", "compression", "--worker", "some"], ("--worker some", "K/N")),
        (["generate"], ("--prompt TEXT", "--prompts FILE")),
        (["generate", "--prompt", " "], ("--prompt TEXT",)),
        (["generate", "--prompts", "gone.txt"], ("'gone.txt'", "check the path")),
        (["generate", "--prompt", "cat", "--lora", "nowhere"], ("--lora nowhere", "OWNER/NAME")),
        (["generate", "--prompt", "cat", "--steps", "0"], ("'steps'", "0")),
        (["generate", "--prompt", "cat", "--dtype", "float"], ("'dtype'", "bfloat16")),
    ],
)
def test_a_mistake_that_needs_no_model_to_be_seen(capsys, monkeypatch, tmp_path, arguments, saying):
    monkeypatch.chdir(tmp_path)
    refuse(capsys, ConfigError, *arguments, saying=saying)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["score", "train", "evaluate"])
def test_a_phase_without_its_run_says_how_to_start_one(capsys, run, command):
    refuse(
        capsys,
        MissingFileError,
        command,
        "--run",
        run,
        saying=(str(run), "is not a run directory", "rlcm loop --task NAME"),
    )
    assert not run.exists()


def test_a_directory_that_holds_something_else_is_left_alone(capsys, settings, run):
    run.mkdir()
    (run / "thesis.tex").write_text("\\section{One}")
    asked = ["loop", "--config", settings, "--run", run]
    refuse(capsys, ConfigError, *asked, saying=(str(run), "no run directory", "choose another --run"))
    assert [file.name for file in run.iterdir()] == ["thesis.tex"]


def test_a_directory_in_which_a_start_was_killed_is_taken(capsys, settings, run):
    """Its only file is a temporary one, which is not part of the format."""
    run.mkdir()
    (run / ".config.json.123-abcd.tmp").write_text("{")
    succeed(capsys, "sample", "--config", settings, "--run", run)


@pytest.mark.parametrize("command", ["loop", "sample"])
def test_a_run_with_another_configuration_shows_the_difference_and_the_ways_out(capsys, settings, run, command):
    succeed(capsys, "sample", "--config", settings, "--run", run)
    before = snapshot(run)
    line = refuse(
        capsys,
        RunMismatchError,
        *[command, "--config", settings, "--run", run, "--seed", "5", "--set", "objective.clip_range=0.5"],
        saying=(
            "seed: 0 → 5",
            "objective.clip_range: 0.0001 → 0.5",
            "choose another --run",
            f"`rlcm loop --run {run}`",
        ),
    )
    assert "iterations" in line[line.index("only the settings of [runtime]") :]
    assert "sample.steps" not in line
    assert snapshot(run) == before


def test_a_seed_cannot_change_on_resume_without_a_task_either(capsys, settings, run):
    succeed(capsys, "sample", "--config", settings, "--run", run)
    refuse(capsys, RunMismatchError, "loop", "--run", run, "--seed", "5", saying=("seed: 0 → 5",))


def test_a_config_of_a_run_that_is_damaged_is_named(capsys, settings, run):
    succeed(capsys, "sample", "--config", settings, "--run", run)
    edit_config(run, lambda config: config["sample"].update(steps="three"))
    refuse(capsys, ConfigError, "train", "--run", run, saying=(str(run / "config.json"), "sample.steps"))


def test_a_reward_of_nan_stops_before_anything_is_stored(capsys, monkeypatch, settings, run):
    import torch

    succeed(capsys, "sample", "--config", settings, "--run", run)
    before = snapshot(run)
    with monkeypatch.context() as patch:
        broken = RewardEntry(
            lambda: lambda images, prompts, metadata: torch.full((len(images),), torch.nan),
            description="",
            value_range="",
            needs="",
        )
        patch.setitem(REWARDS, "compressibility", broken)
        asked = ["score", "--run", run, "--no-cache"]  # another test may have scored the same picture
        refuse(capsys, RewardError, *asked, saying=("'compressibility'", "nan", "sample"))
    assert snapshot(run) == before
    succeed(capsys, "score", "--run", run)


def test_train_without_rewards_or_samples_names_the_phase_to_run(capsys, settings, run, tmp_path):
    succeed(capsys, "sample", "--config", settings, "--run", run)
    refuse(capsys, MissingFileError, "train", "--run", run, saying=(f"`rlcm score --run {run}`",))
    assert checkpoints(run) == [0]
    (run / "rollouts").rename(tmp_path / "elsewhere")
    refuse(capsys, MissingFileError, "train", "--run", run, saying=(f"`rlcm sample --run {run}`",))
    refuse(capsys, MissingFileError, "score", "--run", run, saying=(f"`rlcm sample --run {run}`",))


def test_evaluate_of_a_checkpoint_that_is_not_there(capsys, settings, run):
    succeed(capsys, "sample", "--config", settings, "--run", run)
    asked = ["evaluate", "--run", run, "--checkpoint", "9"]
    refuse(capsys, MissingFileError, *asked, saying=("000009", f"`rlcm inspect {run}`"))
