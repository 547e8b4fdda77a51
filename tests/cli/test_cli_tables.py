"""Tables in windows of any width: nothing is cut, and words stay whole where they fit."""

from __future__ import annotations

import io

import pytest
from command_line import succeed
from compared_runs import write_run
from reported_runs import write_reported
from rich.console import Console

from rlcm_cli.cli.compare import show
from rlcm_cli.cli.tables import print_rows
from rlcm_cli.config import task_names
from rlcm_cli.measuring import doctor
from rlcm_cli.measuring.doctor import Finding
from rlcm_cli.report.compare.comparison import compare_runs
from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.compare.table import tabulate
from rlcm_cli.rewards import REWARDS

WIDTHS = [20, 25, 32, 40, 60, 80, 200]


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns of the window."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def squeeze(text: str) -> str:
    """A text without its layout."""
    return "".join(text.split())


def test_rows_are_whole_in_every_window(width):
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    print_rows(console, [("a long cell", "yes", "some words"), ("b", "", "x" * 50)], header=("name", "here", "about"))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "words" in shown
    assert "a long cell  yes" in shown
    assert shown.count("x") == 50


def test_inspect_shows_names_and_values_in_every_window(capsys, width, tmp_path):
    write_reported(tmp_path / "run")
    shown = succeed(capsys, "inspect", tmp_path / "run").out
    assert max(map(len, shown.splitlines())) <= width
    for words in ("compression", "emoji-lcm", "checkpoints"):
        assert words in squeeze(shown)


def test_presets_are_whole_in_every_window(capsys, width):
    shown = squeeze(succeed(capsys, "tasks").out)
    assert all(name in shown for name in task_names())


def test_rewards_are_whole_in_every_window(capsys, width):
    shown = succeed(capsys, "rewards").out
    table = shown.partition("settings of a reward")[0]
    assert max(map(len, table.splitlines())) <= width
    for name, entry in REWARDS.items():
        assert name in squeeze(table)
        assert entry.description.split()[0] in table


def test_findings_are_wrapped_in_a_window_only(capsys, monkeypatch, width):
    found = Finding("wandb", "note", "is not installed on this machine yet", "pip install 'rlcm[wandb]'")
    monkeypatch.setattr(doctor, "examine", lambda runs: iter([found]))
    assert len(succeed(capsys, "doctor").out.splitlines()) == 1
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = succeed(capsys, "doctor").out
    assert "machine" in shown
    assert squeeze("yet → pip install 'rlcm[wandb]'") in squeeze(shown)


def test_a_comparison_that_does_not_fit_has_the_cells_of_a_row_below_each_other(capsys, monkeypatch, tmp_path):
    roots = [write_run(tmp_path / f"run-{seed}", [0.0, 1.0 * seed], seed=seed) for seed in (1, 2)]
    table = tabulate(compare_runs([open_compared(root, label="method") for root in roots], window=1))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    texts = {}
    for columns in (30, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(table)
        texts[columns] = capsys.readouterr().out
    assert max(map(len, texts[30].splitlines())) <= 30
    narrow, wide = (squeeze(text) for text in texts.values())
    for words in ("Trainingreward", "1.500±6.353"):  # 12.706 standard errors of 0.5
        assert words in narrow
        assert words in wide
    in_one_line = [
        any(all(word in line for word in ("method", "iterations", "final")) for line in text.splitlines())
        for text in texts.values()
    ]
    assert in_one_line == [False, True]
