"""`--prompts` of loop and sample, and prompt files that change between two calls."""

from __future__ import annotations

import json

import pytest
from command_line import refuse, rlcm, succeed, write_settings

from rlcm_cli.errors import ConfigError, RunMismatchError


def drawn(run, iteration: int) -> set[str]:
    return set(json.loads((run / f"rollouts/{iteration:06d}/manifest.json").read_text())["prompts"])


@pytest.fixture
def settings(tiny_lcm, tmp_path):
    return write_settings(tmp_path, tiny_lcm, prompts={"held_out_fraction": 0.0})


def test_a_run_goes_on_with_the_prompts_that_it_began_with(capsys, settings, tmp_path):
    file, run = tmp_path / "p.txt", tmp_path / "run"
    file.write_text("a cat\na dog\n")
    asked = ["loop", "--config", settings, "--prompts", file, "--run", run, "--iterations"]
    succeed(capsys, *asked, 1)
    assert drawn(run, 0) == {"a cat", "a dog"}
    file.write_text("a fox\n")
    refuse(capsys, RunMismatchError, *asked, 2, saying=(str(file), "gone 2: 'a cat', 'a dog'", "new 1: 'a fox'"))
    succeed(capsys, "loop", "--run", run, "--iterations", 2)
    assert drawn(run, 1) == {"a cat", "a dog"}
    again = [*asked, 2]
    file.write_text("a cat\na dog\n")
    succeed(capsys, *again)


def test_sample_takes_prompts_too(capsys, settings, tmp_path):
    (tmp_path / "p.csv").write_text('id,text\n1,"a cat, red"\n2,a dog\n')
    asked = ["sample", "--config", settings, "--prompts", f"{tmp_path / 'p.csv'}:text", "--run", tmp_path / "run"]
    succeed(capsys, *asked)
    assert drawn(tmp_path / "run", 0) == {"a cat, red", "a dog"}


def test_a_file_that_only_a_run_names_is_not_read(capsys, settings, tmp_path):
    file, run = tmp_path / "p.txt", tmp_path / "run"
    file.write_text("a cat\na dog\n")
    succeed(capsys, "sample", "--config", settings, "--prompts", file, "--run", run)
    saying = (f"reads '{file}', which only it names", f"--set 'prompts.source={file}'")
    refuse(capsys, ConfigError, "sample", "--config", run, "--run", tmp_path / "other", saying=saying)
    assert not (tmp_path / "other").exists()
    succeed(capsys, "sample", "--config", run, "--prompts", file, "--run", tmp_path / "other")
    (run / "inputs.json").unlink()
    outcome = rlcm(capsys, "sample", "--run", run)
    assert outcome.status == 4
    assert f"name it: `rlcm sample --run {run} --set 'prompts.source={file}'`" in outcome.err
    succeed(capsys, "sample", "--run", run, "--set", f"prompts.source={file}")


def test_several_tasks_have_prompts_of_their_own(capsys):
    asked = ["loop", "--task", "compression", "--task", "incompression", "--prompts", "simple_animals", "--dry-run"]
    refuse(capsys, ConfigError, *asked, saying=("--prompts sets the prompts of a single task",))
