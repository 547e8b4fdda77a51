"""`rlcm evaluate --run`: which checkpoints, later rewards on stored images, and what is said of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import refuse, snapshot, succeed, write_settings

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.run.data import read_run
from rlcm_cli.report.run.summary import find_changes
from rlcm_cli.runs import policy
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout


@pytest.fixture(scope="module")
def looped(tmp_path_factory, tiny_lcm):
    """A run of two iterations whose checkpoints 0 and 2 were evaluated."""
    from rlcm_cli.cli.app import main

    folder = tmp_path_factory.mktemp("looped")
    settings = write_settings(folder, tiny_lcm, evaluate={"prompts": 6, "images_per_prompt": 2})
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--config", str(settings), "--run", str(folder / "run"), "-q"])
    assert not leaving.value.code
    return folder / "run"


@pytest.fixture
def run(looped, tmp_path) -> Path:
    return Path(shutil.copytree(looped, tmp_path / "run"))


@pytest.fixture
def no_model(monkeypatch):
    """Let loading any model fail."""

    def refuse_to_load(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(policy, "load_model", refuse_to_load)


def test_stored_images_are_scored_by_any_reward_without_a_model_once(capsys, run, no_model):
    asked = ("evaluate", "--run", run, "--reward", "sharpness", "--reward", "brightness")
    shown = succeed(capsys, *asked).out
    rows = [line.split() for line in shown.splitlines() if "±" in line or "–" in line]
    assert [row[0] for row in rows if row[0] in ("sharpness", "brightness")] == ["sharpness", "brightness"]
    assert "wins against checkpoint 0" in shown
    assert "over 6 prompts (12 images)" in shown
    assert f"next: rlcm report {run}" in shown
    before = snapshot(run)
    said = succeed(capsys, *asked, "--json").json_line()
    assert snapshot(run) == before
    assert said["checkpoints"] == [0, 2]
    found = {number: read_evaluation(RunLayout(run), number) for number in (0, 2)}
    judged = {(one["way"], one["reward"]): one for one in said["judged"]["all"]}
    for number, evaluation in found.items():
        means = evaluation.rewards["brightness"].astype(np.float64).reshape(6, 2).mean(1)
        one = judged[str(number), "brightness"]
        assert one["mean"] == pytest.approx(means.mean())
        assert one["standard_error"] == pytest.approx(means.std(ddof=1) / 6**0.5)
    new, old = (found[number].rewards["brightness"].reshape(6, 2) for number in (2, 0))
    wins = (np.sign(new - old) + 1) / 2
    assert judged["2", "brightness"]["win_rate"] == pytest.approx(wins.mean(1).mean())
    assert {one["prompts"] for one in said["judged"]["held_out"]} == {2}


def test_what_was_evaluated_is_shown_again_without_a_model(capsys, run, no_model):
    shown = succeed(capsys, "evaluate", "--run", run, "--checkpoint", 0, "--checkpoint", "last").out
    assert "held-out evaluation, checkpoint 0: " in shown
    assert "wins against checkpoint 0" in shown


def test_a_checkpoint_that_was_not_evaluated_is_drawn_and_scored(capsys, run):
    said = succeed(capsys, "evaluate", "--run", run, "--checkpoint", 1, "--reward", "sharpness", "--json").json_line()
    assert read_evaluation(RunLayout(run), 1).rewards.keys() == {"compressibility", "sharpness"}
    assert said["evaluations"].keys() == {"1"}
    assert "sharpness" not in read_evaluation(RunLayout(run), 2).rewards


def test_the_best_checkpoint_is_named_with_the_reason(capsys, run, no_model):
    shown = succeed(capsys, "evaluate", "--run", run, "--checkpoint", "best", "--reward", "sharpness").out
    means = {n: read_evaluation(RunLayout(run), n).rewards["compressibility"].mean() for n in (0, 2)}
    best = max(means, key=means.get)
    assert f"checkpoint {best}, the best on the held-out images\n" in shown
    succeed(capsys, "evaluate", "--run", run, "--reward", "sharpness")
    shown = succeed(capsys, "evaluate", "--run", run, "--checkpoint", "best:sharpness").out
    assert ", the best by 'sharpness' on the held-out images\n" in shown


def test_the_report_shows_what_scored_later(capsys, run):
    succeed(capsys, "evaluate", "--run", run, "--reward", "sharpness")
    changes = find_changes(read_run(open_compared(run, "run"), "run"))
    assert [(one.name, one.held_out) for one in changes if one.reward == "sharpness"] == [
        ("sharpness", False),
        ("sharpness", True),
    ]


@pytest.mark.parametrize(
    ("words", "error", "saying"),
    [
        (["--reward", "sharpnes"], ConfigError, ("there is no reward 'sharpnes'", "did you mean 'sharpness'?")),
        (["--reward", "votes"], ConfigError, ("is given by people", "rlcm vote")),
        (["--checkpoint", "bst"], ConfigError, ("--checkpoint bst: is not a checkpoint", "best:REWARD")),
        (["--checkpoint", "best:sharpness"], ConfigError, ("no two evaluations", "--reward sharpness`")),
        (["--checkpoint", "9", "--reward", "sharpness"], MissingFileError, ("000009", "the run has 0 to 2")),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(capsys, run, no_model, words, error, saying):
    before = snapshot(run)
    refuse(capsys, error, "evaluate", "--run", run, *words, saying=saying)
    assert snapshot(run) == before
