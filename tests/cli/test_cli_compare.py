"""`rlcm compare`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refuse, snapshot, succeed, write_settings
from compared_runs import write_run
from PIL import Image

from rlcm_cli.errors import ConfigError, MissingFileError, ModelError

FAST, SLOW = [-4.0, -3.0, -2.0, -1.0], [-4.0, -3.5, -3.0, -2.5]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one method and a run of a slower one."""
    root = tmp_path_factory.mktemp("runs")
    lcm = [write_run(root / f"lcm-{seed}", [reward + seed for reward in FAST], seed=seed) for seed in (0, 1)]
    train = {"learning_rate": 2e-4}
    return [*lcm, write_run(root / "ddpo", SLOW, samples=20, seconds=4000.0, forwards=10**6, train=train)]


def test_the_table_has_a_column_a_method(capsys, runs, tmp_path):
    shown = succeed(capsys, "compare", *runs, "--smooth", 1, "--out", tmp_path / "out").out.splitlines()
    assert [" ".join(line.split()) for line in shown] == [
        "reward: compressibility; for several seeds, the mean of their values (lowest to highest)",
        "lcm ddpo",
        "seeds × iterations 2 × 4 1 × 4",
        "first reward −3.500 −4.000",
        "(−4.000 to −3.000)",
        "best reward −0.500 −2.500",
        "(−1.000 to 0.000)",
        "final reward −0.500 −2.500",
        "(−1.000 to 0.000)",
        "queries to −2.500 10 60",
        "(5 to 15)",
        "speed-up over ddpo 6.0 1.0",
        "queries in all 40 80",
        "wall time to −2.500 4.0 s 3.3 h",
        "(2.0 s to 6.0 s)",
        "speed-up over ddpo 3000 1.0",
        "wall time in all 16.0 s 4.4 h",
        "model forwards to −2.500 100 3,000,000",
        "(50 to 150)",
        "speed-up over ddpo 30000 1.0",
        "model forwards in all 400 4,000,000",
        "note: ddpo: settings that differ from those of lcm: train.learning_rate 0.0001 → 0.0002",
        f"{tmp_path / 'out'}: compare.json, compare.png",
    ]


def test_the_heading_says_how_many_iterations_are_averaged_in_these_runs(capsys, runs, tmp_path):
    """The runs have 4 iterations, so that the 5 that are asked for by default would be all of them."""
    told = succeed(capsys, "compare", runs[2], "--out", tmp_path).out
    assert told.startswith("reward: compressibility; first, best and final are means of 2 iterations\n")


def test_json_is_the_file_s_content_and_holds_no_path_of_the_machine(capsys, runs, tmp_path):
    told = succeed(capsys, "compare", *runs, "--out", tmp_path / "out", "--json").json_line()
    assert told.pop("files") == [str(tmp_path / "out/compare.json"), str(tmp_path / "out/compare.png")]
    text = (tmp_path / "out/compare.json").read_text()
    assert json.loads(text) == told
    assert str(runs[0].parent) not in text
    assert [method["runs"] for method in told["methods"]] == [["lcm-0", "lcm-1"], ["ddpo"]]


def test_options_choose_label_reward_target_window_and_clock(capsys, runs, tmp_path):
    lcm, ddpo = ",".join(map(str, runs[:2])), runs[2]
    chosen = ["--reach", -3, "--reward", "compressibility", "--smooth", 2, "--time", "cpu"]
    labels = ["--label", f"RLCM={lcm}", "--label", f"DDPO, 20 steps={ddpo}"]
    told = succeed(capsys, "compare", *labels, *chosen, "--out", tmp_path, "--json").json_line()
    assert [method["label"] for method in told["methods"]] == ["RLCM", "DDPO, 20 steps"]
    assert (told["target"], told["smoothed_over_iterations"]) == (-3.0, 2)
    assert told["costs"] == ["queries", "cpu_seconds", "forwards"]
    # −4, −3.75, −3.25, −2.75: half-way from the policy after two iterations to that after three
    assert told["methods"][1]["reach"]["cpu_seconds"]["price"] == 2.5 * 8000


def test_what_an_older_run_did_not_record_is_said(capsys, runs, tmp_path):
    old = write_run(tmp_path / "old", SLOW, seed=7, without=("forwards",))
    shown = succeed(capsys, "compare", runs[2], old, "--out", tmp_path / "out").out
    assert "note: no forwards: the metrics of old lack forwards" in shown
    assert "model forwards" not in shown


def test_a_never_is_a_never(capsys, runs, tmp_path):
    shown = succeed(capsys, "compare", *runs, "--reach", -0.5, "--smooth", 1, "--out", tmp_path).out
    (line, own) = shown[shown.index("queries to") :].splitlines()[:2]
    assert line.split() == ["queries", "to", "−0.500", "1", "of", "2", "reached", "it", "never"]
    assert own.split() == ["(25)"]
    assert "speed-up" not in shown  # no two methods have a mean


@pytest.mark.parametrize(
    ("arguments", "error", "saying"),
    [
        ([], ConfigError, ("no run given", "rlcm compare runs/a runs/b")),
        (["{tmp}/nowhere"], MissingFileError, ("nowhere: is not a run directory",)),
        (["{tmp}/notes.txt"], MissingFileError, ("notes.txt: is not a run directory",)),
        (["{run}", "{run}"], ConfigError, ("is given twice",)),
        (["{run}", "--label", "x"], ConfigError, ("--label x: write NAME=RUN",)),
        (["{run}", "--label", "x="], ConfigError, ("--label x=: write NAME=RUN",)),
        (["{run}", "--reward", "ocr"], ConfigError, ("--reward ocr:", "has not scored it", "compressibility")),
        (["{run}", "--smooth", "0"], ConfigError, ("'--smooth'",)),
        (["{run}", "--time", "gpu"], ConfigError, ("'--time'", "'wall'", "'cpu'")),
        (["{run}", "--out", "{tmp}/notes.txt"], ConfigError, ("'--out'", "is a file")),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(capsys, runs, tmp_path, arguments, error, saying):
    (tmp_path / "notes.txt").write_text("mine")
    given = [argument.format(tmp=tmp_path, run=runs[0]) for argument in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "out"]
    refuse(capsys, error, "compare", *given, *out, saying=saying)
    assert list(tmp_path.iterdir()) == [tmp_path / "notes.txt"]


def test_a_folder_with_a_picture_of_something_else_is_left_alone(capsys, runs, tmp_path):
    (tmp_path / "compare.png").write_bytes(b"mine")
    before = snapshot(tmp_path)
    refuse(capsys, ConfigError, "compare", *runs, "--out", tmp_path, saying=("compare.png", "choose another --out"))
    assert snapshot(tmp_path) == before


def test_samples_are_drawn_with_the_newest_checkpoints(capsys, tiny_lcm, tmp_path):
    settings = write_settings(tmp_path, tiny_lcm)
    succeed(capsys, "loop", "--config", settings, "--run", tmp_path / "run", "--quiet")
    asked = ["compare", tmp_path / "run", "--draw", "--device", "cpu", "--out", tmp_path / "out", "--json"]
    told = succeed(capsys, *asked).json_line()
    assert [Path(file).name for file in told["files"]] == ["compare.json", "compare.png", "samples.png"]
    with Image.open(tmp_path / "out/samples.png") as picture:
        assert picture.width > 8 * 100  # 8 prompts, 4 step counts
        assert picture.height > 4 * 100
    assert {file.name for file in (tmp_path / "out").iterdir()} == {Path(file).name for file in told["files"]}


def test_a_run_that_cannot_be_drawn_writes_nothing(capsys, runs, tmp_path):
    asked = ["compare", runs[2], "--draw", "--out", tmp_path / "out"]
    refuse(capsys, ModelError, *asked, saying=("ddpo: holds no LoRA",))
    assert not (tmp_path / "out").exists()
