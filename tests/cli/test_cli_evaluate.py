"""`rlcm evaluate --run`: which checkpoints, later rewards on stored images, and what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import refuse, snapshot, succeed, write_settings

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.judging.folder import Results, write_results
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


def read_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


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


class TestOwnPrompts:
    """Images of prompts that are not the run's, drawn into a folder."""

    def test_a_run_s_checkpoints_are_drawn_with_the_base_and_scored_later(self, capsys, run, tmp_path):
        out = tmp_path / "out"
        asked = ["evaluate", "--run", run, "--checkpoint", 1, "--checkpoint", "last", "--prompts", "simple_animals"]
        asked += ["--most-prompts", 2, "--images-per-prompt", 2, "--out", out]
        shown = succeed(capsys, *asked, "--reward", "brightness").out
        assert "wins against base" in shown
        assert {f"{row['way']} {row['seed']}" for row in read_rows(out)} == {
            f"{way} {seed}" for way in ("base", "run, checkpoint 1", "run, checkpoint 2") for seed in range(4)
        }
        before = snapshot(out)
        again = succeed(capsys, *asked, "--reward", "brightness", "--json").json_line()
        assert snapshot(out) == before
        assert (again["images"], again["out"]) == (12, str(out))
        assert {one["way"]: one.get("against") for one in again["judged"]} == {
            "base": None,
            "run, checkpoint 1": "base",
            "run, checkpoint 2": "base",
        }
        for file in (out / "base").iterdir():
            file.unlink()
        succeed(capsys, *asked)  # the base by itself, not after a LoRA
        assert snapshot(out) == before
        later = succeed(capsys, "evaluate", "--images", out, "--reward", "sharpness", "--json").json_line()
        assert {one["reward"] for one in later["judged"]} == {"brightness", "sharpness"}
        assert all(row["reward.sharpness"] is not None for row in read_rows(out))
        before = snapshot(out)
        shown = succeed(capsys, "evaluate", "--images", out).out
        assert "brightness" in shown
        assert "sharpness" in shown
        assert snapshot(out) == before

    @pytest.mark.parametrize("words", [("compare", "{}"), ("compare", "--label", "a={}"), ("report", "{}")])
    def test_its_folder_is_no_run_to_compare_or_report(self, capsys, tmp_path, monkeypatch, words):
        monkeypatch.chdir(tmp_path)
        row = {"file": "base/0.png", "prompt": "a cat", "seed": 0, "way": "base", "reward.brightness": 0.5}
        (tmp_path / "out").mkdir()
        write_results(tmp_path / "out", Results([row]))
        before = snapshot(tmp_path)
        saying = (
            "out: is not a run; it holds images that `rlcm evaluate` drew outside of one; see",
            "`rlcm evaluate --images out`",
        )
        refuse(capsys, ConfigError, *(word.format("out") for word in words), saying=saying)
        assert snapshot(tmp_path) == before
        assert "0.5" in succeed(capsys, "evaluate", "--images", "out").out

    def test_a_sweep_says_which_is_compared_with_which(self, capsys, run, tmp_path):
        words = ["--lora", run, "--prompts", "simple_animals", "--most-prompts", 2, "--out", tmp_path / "out"]
        shown = succeed(capsys, "evaluate", *words, "--steps", "1,2", "--guidance", "2", "--reward", "brightness").out
        (row,) = [line for line in shown.splitlines() if "run, 2 steps, guidance 2" in line]
        assert "base, 2 steps, guidance 2" in row

    @pytest.mark.parametrize(
        ("words", "error", "saying"),
        [
            ([], ConfigError, ("nothing to evaluate", "--run DIR", "--prompts SOURCE", "--images DIR")),
            (["--steps", "2"], ConfigError, ("--steps goes with --prompts",)),
            (["--run", "r", "--guidance", "2"], ConfigError, ("held-out images are always drawn alike",)),
            (["--images", "i", "--run", "r"], ConfigError, ("--run with --images",)),
            (["--images", "i"], MissingFileError, ("there is no such folder",)),
            (["--prompts", "simple_animals", "--checkpoint", "1"], ConfigError, ("name one with --run",)),
            (["--prompts", "simple_animals", "--lora", "none"], ConfigError, ("--lora none: no such run",)),
            (["--prompts", "simple_animals", "--steps", "two"], ConfigError, ("'two' is not a whole number",)),
            (["--prompts", "simple_animals", "--shard-weights"], ConfigError, ("draws in one process",)),
            (["--run", "r", "--size", "64"], ConfigError, ("--size goes with --prompts",)),
            (["--prompts", "none"], ConfigError, ("neither a built-in set",)),
            (["--prompts", "simple_animals", "--reward", "none"], ConfigError, ("there is no reward 'none'",)),
            (["--prompts", "simple_animals", "--set", "seed=1"], ConfigError, ("only settings of the rewards",)),
        ],
    )
    def test_mistakes_are_one_line_and_draw_nothing(
        self, capsys, tmp_path, monkeypatch, no_model, words, error, saying
    ):
        monkeypatch.chdir(tmp_path)
        refuse(capsys, error, "evaluate", *words, saying=saying)
        assert list(tmp_path.iterdir()) == []


class TestNamedCheckpoints:
    """`--checkpoint` of the commands that use weights."""

    def test_generate_and_export_take_a_checkpoint_of_a_run(self, capsys, run, tmp_path):
        drawn = ["generate", "--lora", run, "--prompt", "cat", "--steps", 1, "--out"]
        shown = succeed(capsys, *drawn, tmp_path / "best", "--checkpoint", "best").out
        assert ", the best on the held-out images\n" in shown
        succeed(capsys, *drawn, tmp_path / "one", "--checkpoint", 1)
        succeed(capsys, "generate", "--lora", run / "checkpoints/000001", *drawn[3:], tmp_path / "path")
        one, path = ((tmp_path / name / "00000-cat-0.png").read_bytes() for name in ("one", "path"))
        assert one == path
        found = succeed(capsys, "export", run, "--checkpoint", 1, "--out", tmp_path / "export", "--json").json_line()
        assert found["checkpoint"] == 1

    @pytest.mark.parametrize("command", ["generate", "export", "report"])
    def test_a_checkpoint_that_cannot_be_is_refused(self, capsys, run, command):
        words = {"generate": ["--prompt", "cat", "--lora", run]}.get(command, [run])
        refuse(capsys, ConfigError, command, *words, "--checkpoint", "bst", saying=("--checkpoint bst",))
        if command != "report":
            refuse(capsys, MissingFileError, command, *words, "--checkpoint", 9, saying=("the run has 0 to 2",))

    def test_a_place_without_checkpoints_is_told_so(self, capsys, run):
        file = run / "checkpoints/000001"
        words = ["--prompt", "cat", "--lora", file, "--checkpoint", "1"]
        refuse(capsys, ConfigError, "generate", *words, saying=("is not a run, which has checkpoints",))
        refuse(capsys, ConfigError, "generate", "--prompt", "cat", "--checkpoint", "1", saying=("there is none",))

    def test_a_report_ends_with_the_checkpoint(self, run):
        data = read_run(open_compared(run, "run"), "run", 1)
        assert [row.checkpoint for row in data.metrics] == [1]
        assert [found.checkpoint for found in data.evaluations] == [0]
        assert [rollout.manifest.iteration for rollout in data.rollouts] == [0]


def test_the_sets_are_listed_with_their_licences(capsys):
    shown = " ".join(succeed(capsys, "evaluate", "--prompts", "help").out.split())
    for words in ("simple_animals built in", "geneval2 as geneval2:PATH", "CC-BY-NC-4.0", "drawbench on the hub"):
        assert words in shown
