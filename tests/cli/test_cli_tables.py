"""Tables in windows of any width: nothing is cut, and words stay whole where they fit."""

from __future__ import annotations

import io

import pytest
from command_line import succeed
from reported_runs import write_reported
from rich.console import Console

from rlcm_cli.cli.compare import show
from rlcm_cli.cli.tables import print_rows
from rlcm_cli.config import task_names
from rlcm_cli.measuring import doctor
from rlcm_cli.measuring.doctor import Finding
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


def test_a_comparison_that_does_not_fit_is_a_table_a_method(capsys, monkeypatch):
    spread = {"mean": 1.0, "lowest": 0.5, "highest": 1.5}
    methods = [
        {
            "label": f"method-{number}",
            "seeds": [1, 2],
            "iterations": 4,
            "windows": [1, 1],
            **dict.fromkeys(("first", "best", "final"), spread),
            "evaluated": None,
            "reach": {},
            "total": {},
        }
        for number in range(3)
    ]
    table = {"methods": methods, "costs": [], "reward": "sharpness", "smoothed_over_iterations": 1, "target": 1.0}
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    for columns, tables in ((30, 3), (120, 1)):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(table)
        shown = capsys.readouterr().out
        assert shown.count("best reward") == tables
        assert squeeze(shown).count("(0.500to1.500)") == 9
        assert all(f"method-{number}" in shown for number in range(3))
