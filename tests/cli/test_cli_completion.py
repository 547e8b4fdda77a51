"""What a shell completes after an option: names and runs."""

from __future__ import annotations

import pytest
from command_line import refuse, succeed

from rlcm_cli.cli.completion import complete_run, complete_setting
from rlcm_cli.errors import ConfigError, ModelError


def complete(capsys, monkeypatch, words: str) -> list[str]:
    """Words that bash is given for a line; the last one is being typed."""
    monkeypatch.setenv("_RLCM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"rlcm {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
    return succeed(capsys).out.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("loop --task ddpo-in", ["ddpo-incompression"]),
        ("tasks grp", ["grpo-guard", "grpo-hps"]),
        ("loop --reward colour", ["colourfulness"]),
        ("loop --monitor sharp", ["sharpness"]),
        ("score --reward sharp", ["sharpness"]),
        ("rewards sharp", ["sharpness"]),
        ("loop --objective rwr", ["rwr", "rwr-sparse"]),
        ("sample --sampler d", ["ddim"]),
        ("loop --train f", ["full"]),
        ("loop --last-step n", ["noise"]),
        ("loop --dtype b", ["bfloat16"]),
        ("loop --device cu", ["cuda"]),
        ("loop --model emoji-d", ["emoji-diffusion"]),
        ("loop --set train.lear", ["train.learning_rate="]),
        ("bench --set sample.gu", ["sample.guidance_scale="]),
    ],
)
def test_a_shell_completes_the_names_that_the_program_knows(capsys, monkeypatch, tmp_path, words, found):
    monkeypatch.chdir(tmp_path)
    assert complete(capsys, monkeypatch, words) == found


def test_a_setting_s_words_are_completed_after_its_sign():
    assert complete_setting("objective.kind=r") == [
        "objective.kind=rebel",
        "objective.kind=reinforce",
        "objective.kind=rwr",
        "objective.kind=rwr-sparse",
    ]
    assert complete_setting("runtime.tf32=") == ["runtime.tf32=true", "runtime.tf32=false"]
    assert complete_setting("nothing=") == []


def test_runs_and_folders_on_the_way_to_one_are_completed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/a", "runs/b", "other/c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").touch()
    (tmp_path / "runs" / "no-run").mkdir()
    assert complete_run("") == ["runs/a", "runs/b", "other/", "runs/"]
    assert complete_run("runs/") == ["runs/a", "runs/b", "runs/no-run/"]
    assert complete_run("other/") == ["other/c"]
    assert complete_run("gone/") == []
    assert complete(capsys, monkeypatch, "watch runs/a") == ["runs/a"]
    assert complete(capsys, monkeypatch, "score --run runs/b") == ["runs/b"]


# Hints


def test_a_run_that_is_not_there_is_named_as_such(capsys, tmp_path):
    refuse(capsys, ConfigError, "loop", "--run", tmp_path / "typo", saying=("typo: there is no run", "--task NAME"))


@pytest.mark.parametrize(("given", "meant"), [("fp16", "float16"), ("bf16", "bfloat16"), ("flaot32", "float32")])
def test_a_dtype_that_other_programs_know_is_answered_with_ours(capsys, given, meant):
    saying = (f"(did you mean '{meant}'?)",)
    refuse(capsys, ConfigError, "loop", "--task", "compression", "--dry-run", "--dtype", given, saying=saying)


def test_an_option_without_its_value_names_the_help_of_its_command(capsys):
    refuse(capsys, ConfigError, "generate", "--prompt", saying=("--prompt", "(see `rlcm generate --help`)"))


def test_a_device_that_is_not_there(capsys, tmp_path, tiny_lcm):
    asked = ["loop", "--task", "compression", "--model", tiny_lcm, "--run", tmp_path / "run", "--device", "gpu"]
    refuse(capsys, ModelError, *asked, saying=("'gpu' is not available", "did you mean 'cuda'?", "--device cpu"))
