"""What is shown of a phase's events: lines for people, one line for machines."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from metric_rows import make_row

from rlcm_cli.cli.display import Display
from rlcm_cli.cli.loop import device_line
from rlcm_cli.events import (
    Advanced,
    CostEstimated,
    Evaluated,
    FilesPruned,
    FileWritten,
    FlatFound,
    HackingFound,
    IterationTrained,
    PhaseSkipped,
    PhaseStarted,
    Warned,
)

METRICS = {
    "reward_mean": -1.25,
    "reward_std": 0.5,
    "reward_best": -0.75,
    "rewards": {"compressibility": -1.0, "recognition": -0.25},
    "monitored": {},
    "tasks": {"compression": -1.25},
    "kl_to_base": 0.0,
}
EVENTS = [
    CostEstimated(seconds=200.0, disk_bytes=12_300_000, iterations=2),
    PhaseStarted("sample", 0, 8, "images"),
    Advanced(8),
    Warned("mind this"),
    PhaseSkipped("score", 0, "all is there"),
    IterationTrained(1, make_row(0, **METRICS)),
    Evaluated(1, -1.5, None, {"compressibility": -1.5}, {"compression": -1.5}),
    FlatFound(40, 3, 10),
    FilesPruned([0, 1, 2], [1], 12_300_000),
    FileWritten(Path("sheet.png"), "a sheet"),
]


def show(capsys: pytest.CaptureFixture[str], *, quiet: bool = False, as_json: bool = False) -> tuple[str, str]:
    display = Display(quiet=quiet, as_json=as_json, iterations=2)
    display.follow(EVENTS)
    display.finish({"run": "runs/a"})
    return capsys.readouterr()


def test_people_read_cost_reward_warnings_and_results(capsys):
    out, err = show(capsys)
    assert err == ""
    for words in (
        "2 iterations will take about 3 min and 12 MB of disk",
        "iteration 1/2  weighted sum -1.250 ± 0.500  best -0.750  (compressibility -1.000, recognition -0.250)",
        "warning: mind this",
        "stopped at iteration 40: the held-out reward has not risen for 3 evaluations, since checkpoint 10; to "
        "continue, raise --stop-when-flat",
        "removed 3 rollouts (0 to 2) and 1 checkpoint (1): 12 MB",
        "score of iteration 1: nothing to do, all is there",
        "held-out evaluation, checkpoint 1: -1.500 on training prompts  (compressibility -1.500)",
        "sheet.png: a sheet",
    ):
        assert words in out


def test_piped_output_has_no_control_characters(capsys):
    out, _ = show(capsys)
    assert all(character.isprintable() for line in out.splitlines() for character in line)


def test_quiet_prints_results_and_warnings_only(capsys):
    out, _ = show(capsys, quiet=True)
    assert [line.split()[0] for line in out.splitlines()] == ["warning:", "held-out", "stopped", "sheet.png:"]


@pytest.mark.parametrize("quiet", [False, True])
def test_json_is_the_only_line_on_stdout(capsys, quiet):
    out, err = show(capsys, quiet=quiet, as_json=True)
    assert json.loads(out) == {
        "run": "runs/a",
        "skipped": ["score"],
        "checkpoint": 1,
        "reward_mean": -1.25,
        "reward_std": 0.5,
        "evaluations": {"1": {"reward_training": -1.5, "reward_held_out": None, "compressibility": -1.5}},
        "flat": {"checkpoint": 40, "best": 10},
        "pruned": {"rollouts": [0, 1, 2], "checkpoints": [1], "bytes": 12_300_000},
        "files": ["sheet.png"],
    }
    assert out.count("\n") == 1
    assert "warning: mind this" in err


def test_json_has_null_for_what_is_not_finite(capsys):
    display = Display(quiet=True, as_json=True)
    display.finish({"a": float("nan"), "b": [float("inf"), 1.0], "c": {"d": float("-inf")}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 1.0],
        "c": {"d": None},
    }


def test_a_single_iteration_is_no_plural(capsys):
    Display(quiet=False, as_json=False).follow([CostEstimated(1.0, 1.0, 1)])
    assert capsys.readouterr().out.startswith("1 iteration will")


def test_a_kl_penalty_is_shown_where_it_acts(capsys):
    Display(quiet=False, as_json=False).follow([IterationTrained(1, make_row(0, **{**METRICS, "kl_to_base": 0.25}))])
    assert "kl 0.2500" in capsys.readouterr().out


def test_monitored_rewards_are_shown_with_the_trained_ones(capsys):
    Display(quiet=False, as_json=False).follow(
        [IterationTrained(1, make_row(0, **{**METRICS, "monitored": {"sharpness": 2.0}}))]
    )
    assert "recognition -0.250)  monitored: sharpness 2.000" in capsys.readouterr().out


def test_rewards_of_several_tasks_are_shown_apart(capsys):
    tasks = {"compression": -1.0, "incompression": 2.0}
    Display(quiet=False, as_json=False).follow(
        [
            IterationTrained(1, make_row(0, **{**METRICS, "tasks": tasks})),
            Evaluated(1, 0.5, 0.25, {"compressibility": -1.0}, tasks),
        ]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("iteration 1  compression -1.000  incompression 2.000  (")
    assert (
        "held-out evaluation, checkpoint 1: compression -1.000, incompression 2.000  (compressibility -1.000)"
        in second
    )


def test_a_sum_in_standard_deviations_says_so(capsys):
    display = Display(quiet=False, as_json=False)
    event = Evaluated(1, 0.5, 0.25, {"compressibility": -1.0}, {"compression": 0.4}, in_deviations=True)
    display.follow([event])
    shown = "0.500 on training prompts, 0.250 on held-out prompts, in standard deviations  (compressibility -1.000)"
    assert shown in " ".join(capsys.readouterr().out.split("\n"))
    assert display.summary["evaluations"]["1"]["in_standard_deviations"] is True
    display.follow([Evaluated(2, None, None, {}, {}, in_deviations=True)])
    assert "standard deviations" not in capsys.readouterr().out


@pytest.mark.parametrize("stops", [False, True])
def test_hacking_is_told_even_where_it_is_quiet(capsys, stops):
    display = Display(quiet=True, as_json=True)
    display.follow([HackingFound(7, "sharpness", "'sharpness' fell", stops)])
    display.finish()
    out, err = capsys.readouterr()
    assert "hacking, at iteration 7: 'sharpness' fell" in err
    assert ("stopped here" in err) == stops
    assert json.loads(out)["hacking"] == {"sharpness": 7}


def test_markup_in_a_path_is_printed_as_it_is(capsys):
    Display(quiet=False, as_json=False).follow([FileWritten(Path("[bold]a[/bold].png"), "a sheet")])
    assert capsys.readouterr().out == "[bold]a[/bold].png: a sheet\n"


def test_a_gpu_under_the_embedded_model_is_told_of_the_papers_model():
    assert "SimianLuo/LCM_Dreamshaper_v7" in device_line("emoji-lcm", "cuda")
    assert device_line("emoji-lcm", "cpu") == "device cpu"
    assert device_line("some/model", "cuda") == "device cuda"


def test_an_iteration_takes_what_its_phases_take(capsys, monkeypatch):
    """The clock also counts the evaluation before it, and the loading of the model."""
    monkeypatch.setattr("time.perf_counter", itertools.count(0, 100).__next__)
    display = Display(quiet=False, as_json=False)
    seconds = {"sample_seconds": 1.5, "score_seconds": 0.25, "train_seconds": 2.25}
    display._show_iteration(1, make_row(0, **METRICS, **seconds))
    display._show_iteration(2, make_row(1, **METRICS))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  4.0 s")
    assert float(second.split()[-2]) >= 100


def test_rewards_from_files_and_servers_have_short_names(capsys):
    file, server = "/home/me/rewards/mine.py:redness", "http://127.0.0.1:8000/colourfulness"
    metrics = {**METRICS, "rewards": {file: -1.0, server: 2.0}, "monitored": {"/b.py:blueness": 1.0}}
    Display(quiet=False, as_json=False).follow(
        [IterationTrained(1, make_row(0, **metrics)), Evaluated(1, 0.5, 0.25, {file: -1.0}, {"t": 0.5})]
    )
    first, second = capsys.readouterr().out.splitlines()
    assert "(redness -1.000, colourfulness 2.000)  monitored: blueness 1.000" in first
    assert (
        second
        == "held-out evaluation, checkpoint 1: 0.500 on training prompts, 0.250 on held-out prompts  (redness -1.000)"
    )


@pytest.mark.parametrize("columns", [30, 80])
def test_in_a_window_no_word_is_broken(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    text = "some words that are many, since a line of them must be longer than a narrow window has columns for it"
    Display(quiet=False, as_json=False).say(text)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()) == text
