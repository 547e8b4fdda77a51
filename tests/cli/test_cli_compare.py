"""`rlcm compare`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from command_line import refuse, snapshot, succeed, write_settings
from compared_runs import write_evaluation, write_run
from PIL import Image

from rlcm_cli.errors import ConfigError, MissingFileError, ModelError
from rlcm_cli.report.run.levels import format_level

FAST, SLOW = [-4.0, -3.0, -2.0, -1.0], [-4.0, -3.5, -3.0, -2.5]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one method and a run of a slower one."""
    root = tmp_path_factory.mktemp("runs")
    lcm = [write_run(root / f"lcm-{seed}", [reward + seed for reward in FAST], seed=seed) for seed in (0, 1)]
    train = {"learning_rate": 2e-4}
    return [*lcm, write_run(root / "ddpo", SLOW, samples=20, seconds=4000.0, forwards=10**6, train=train)]


def test_a_row_a_seed_and_a_row_a_method(capsys, runs, tmp_path):
    shown = succeed(capsys, "compare", *runs, "--smooth", 1, "--out", tmp_path / "out").out.splitlines()
    assert [" ".join(line.split()) for line in shown] == [
        "reward: compressibility",
        "training: first, best and final are the means of the first, the best and the last iteration",
        "cost: until a run's own curve first reaches −2.500, the highest reward that every run reaches; no mean where "
        "a seed never does",
        "±: half of the 95 % interval of the mean over seeds (Student's t, n − 1 degrees of freedom)",
        "one seed, so no interval: ddpo",
        "",
        "Training reward",
        "method seed iterations first best final",
        "lcm 0 4 −4.000 −1.000 −1.000",
        "1 4 −3.000 0.000 0.000",
        "mean of 2 4 −3.500 ± 6.353 −0.500 ± 6.353 −0.500 ± 6.353",
        "ddpo 0 4 −4.000 −2.500 −2.500",
        "",
        "Cost of first reaching −2.500",
        "method seed queries wall time model forwards",
        "lcm 0 15 6.0 s 150",
        "1 5 2.0 s 50",
        "mean of 2 10 ± 64 4.0 s ± 25.4 s 100 ± 635",
        "ddpo 0 60 3.3 h 3,000,000",
        "",
        "Cost of the whole training",
        "method seed queries wall time model forwards",
        "lcm 0 40 16.0 s 400",
        "1 40 16.0 s 400",
        "mean of 2 40 ± 0 16.0 s ± 0.0 s 400 ± 0",
        "ddpo 0 80 4.4 h 4,000,000",
        "",
        "queries to −2.500, times less than ddpo: lcm 6.0",
        "wall time to −2.500, times less than ddpo: lcm 3000",
        "model forwards to −2.500, times less than ddpo: lcm 30000",
        "",
        "Settings that differ",
        "setting lcm ddpo",
        "train.learning_rate 0.0001 0.0002",
        "",
        "note: no held-out rewards: they need two evaluations to compare",
        f"{tmp_path / 'out'}: compare.json, compare.png",
    ]


def test_the_heading_says_how_many_iterations_are_averaged_in_these_runs(capsys, runs, tmp_path):
    """The runs have 4 iterations, so that the 5 that are asked for by default would be all of them."""
    told = succeed(capsys, "compare", runs[2], "--out", tmp_path).out.splitlines()
    assert (
        told[1]
        == "training: first, best and final are means of the first 2 iterations, the best 2 in a row and the last 2"
    )


def read_markdown(text: str) -> list[list[str]]:
    """Return the cells of all rows of the tables."""
    rows = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip().replace("\\_", "_") for cell in row.split("|")[1:-1]] for row in rows]


def read_latex(text: str) -> list[list[str]]:
    """Return the cells of all rows of the tables, as LaTeX sets them."""
    for written, read in {"$-$": "−", r"$\pm$": "±", " -- ": " – ", r"\_": "_"}.items():
        text = text.replace(written, read)
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    return [[cell.strip() for cell in row.removesuffix("\\\\").split("&")] for row in rows]


def test_all_formats_have_the_same_numbers(capsys, runs, tmp_path):
    for run in runs:
        for number, value in ((0, 1.0), (1, 3.0), (2, 2.0)):
            values = [value + 0.1 * runs.index(run), value, value]
            write_evaluation(run, number, {"compressibility": values}, [True, False, False])
    told = {
        form: succeed(capsys, "compare", *runs, "--smooth", 1, "--out", tmp_path, "--format", form)
        for form in ("table", "md", "latex", "csv", "json")
    }
    assert json.loads(told["json"].out) == json.loads((tmp_path / "compare.json").read_text())
    assert read_markdown(told["md"].out) == read_latex(told["latex"].out)
    plain = ["".join(line.split()) for line in told["table"].out.splitlines()]
    shown = read_markdown(told["md"].out)
    assert all("".join("".join(row).split()) in plain for row in shown)
    rows = list(csv.DictReader(io.StringIO(told["csv"].out)))
    assert [(row["method"], row["seed"], row["row"]) for row in rows] == [
        *(("lcm", str(seed), "seed") for seed in (0, 1)),
        *(("lcm", "", kind) for kind in ("mean", "low", "high")),
        ("ddpo", "0", "seed"),
        *(("ddpo", "", kind) for kind in ("mean", "low", "high")),
    ]
    training = [row for row in shown if row[0] in ("lcm", "", "ddpo")][:4]
    texts = [format_level(float(row["training: first"])) for row in rows if row["row"] in ("seed", "mean")]
    assert [row[3].split(" ± ")[0] for row in training] == texts[:4]
    lcm = json.loads(told["json"].out)["methods"][0]
    assert [float(rows[number]["training: first"]) for number in (3, 4)] == lcm["first"]["interval"]
    assert (
        float(rows[2]["held_out_prompts: best"]) == lcm["held_out"]["rewards"][""]["held_out_prompts"]["best"]["mean"]
    )
    assert rows[0]["held_out_seeds: best_checkpoint"] == "1"
    assert rows[6]["training: first"] == "-4.0"
    assert rows[7]["training: first"] == ""  # one seed has no interval


def test_a_format_keeps_stdout_for_the_table(capsys, runs, tmp_path):
    told = succeed(capsys, "compare", *runs, "--out", tmp_path, "--format", "csv")
    assert told.out.startswith("method,run,seed,row,")
    assert told.out.count("\n") == 10
    assert f"{tmp_path}: compare.json, compare.png" in told.err
    refuse(capsys, ConfigError, "compare", *runs, "--format", "csv", "--json", saying=("--json and --format csv",))


def test_a_folder_of_runs_stands_for_them(capsys, tmp_path):
    for seed in (2, 10):
        root = write_run(tmp_path / f"runs/rlcm/seed-{seed}", FAST, seed=seed)
        (root / "checkpoints").mkdir()
    told = succeed(capsys, "compare", tmp_path / "runs", "--out", tmp_path / "out", "--json").json_line()
    (method,) = told["methods"]
    assert (method["label"], method["runs"], method["seeds"]) == ("rlcm", ["rlcm/seed-2", "rlcm/seed-10"], [2, 10])
    label = succeed(
        capsys, "compare", "--label", f"mine={tmp_path / 'runs'}", "--out", tmp_path / "out", "--json"
    ).json_line()["methods"][0]["label"]
    assert label == "mine"


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
    lines = [line.split()[:3] for line in shown[shown.index("Cost of first") :].splitlines()[2:6]]
    assert lines == [["lcm", "0", "never"], ["1", "25", "10.0"], ["mean", "of", "2"], ["ddpo", "0", "never"]]
    assert "1 of 2 reached it" in shown
    assert "times less" not in shown  # no two methods have a mean


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
        assert picture.width > 8 * 100  # 8 prompts, 4 step counts with the base model and as many with the run
        assert picture.height > 8 * 100
    assert {file.name for file in (tmp_path / "out").iterdir()} == {Path(file).name for file in told["files"]}


def test_a_run_that_cannot_be_drawn_writes_nothing(capsys, runs, tmp_path):
    asked = ["compare", runs[2], "--draw", "--out", tmp_path / "out"]
    refuse(capsys, ModelError, *asked, saying=("ddpo: holds no LoRA",))
    assert not (tmp_path / "out").exists()
