"""The view of a run: what it shows at several widths, how it follows events, and what stays in the terminal."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from reported_runs import make_metrics
from rich.console import Console
from screen import read_screen

from rlcm_cli.cli.display import Display
from rlcm_cli.cli.live import BLOCKS, WARNINGS, RunView, draw_sparkline, follow_event, format_value
from rlcm_cli.events import Advanced, Evaluated, Event, HackingFound, IterationTrained, PhaseStarted, Warned
from rlcm_cli.report.run.progress import PhaseProgress, RunProgress

TITLE = "runs/a-run  compression, emoji-lcm, seed 5"
PROGRESS = RunProgress(
    title=TITLE,
    iterations=40,
    rewards=("compressibility", "a-reward-with-a-name-that-is-long"),
    monitored=("recognition",),
    rows=tuple(make_metrics(number, ("compressibility",)) for number in range(12)),
    phase=PhaseProgress("sample", 3, 8, "images"),
    evaluated=(0, 10),
    warnings=("all images of a prompt have the same reward, for 2 prompts (such as 'cat'): they teach nothing",),
)
EVALUATED = Evaluated(12, -1.5, None, {"compressibility": -1.5}, {"compression": -1.5})


def draw(progress: RunProgress, width: int = 80, **settings: Any) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), legacy_windows=False, **settings)
    console.print(RunView(progress))
    return console.export_text()


def say(number: int) -> str:
    """Give a warning of two lines."""
    return f"number {number}: " + "all images of a prompt have the same reward; " * 2 + "they teach nothing"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal_and_what_matters_is_there(width):
    shown = draw(PROGRESS, width)
    assert max(map(len, shown.splitlines())) <= min(width, 100)
    for words in (TITLE[:20], "12 of 40", "3 of 8", "reward", "2.635", "monitored", "-12.000", "sample 1.0", "0, 10"):
        assert words in shown
    assert "they teach nothing" in " ".join(shown.split())


def test_the_view_tells_how_far_the_run_is():
    progress = replace(
        PROGRESS, rows=tuple(row.model_copy(update={"finished_at": 100.0 * n}) for n, row in enumerate(PROGRESS.rows))
    )
    lines = draw(progress).splitlines()
    assert lines[0] == TITLE
    assert lines[1].split()[0] == "iteration"
    assert lines[1].endswith("12 of 40  about 45 min left")  # 28 iterations of 100 s, one nearly over
    assert lines[2].startswith("sample")
    assert lines[2].endswith("images")
    assert draw(replace(PROGRESS, iterations=12)).splitlines()[1].endswith("done")


def test_the_lines_are_the_same_from_the_start_to_the_end():
    def labels(progress: RunProgress) -> list[str]:
        return [line[:9] for line in draw(progress).splitlines()]

    start = replace(PROGRESS, rows=(), evaluated=())
    assert labels(start) == labels(PROGRESS)
    assert "nan" not in draw(start)


def test_a_joint_run_shows_its_tasks_instead_of_their_sum():
    shown = draw(replace(PROGRESS, tasks=("compression", "other")))
    assert "spread" not in shown
    assert [line.split()[0] for line in shown.splitlines()[4:6]] == ["compression", "other"]


def test_a_low_terminal_loses_curves_and_no_warning():
    console = Console(record=True, width=80, height=14, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(RunView(PROGRESS))
    shown = console.export_text()
    assert len(shown.splitlines()) <= 14
    assert "they teach nothing" in " ".join(shown.split())
    assert "reward" in shown


def test_without_colours_nothing_is_lost():
    coloured = draw(PROGRESS, force_terminal=True, color_system="truecolor")
    plain = draw(PROGRESS, force_terminal=True, no_color=True)
    assert plain.replace("━", " ").replace("╺", " ").replace("╸", " ").split() == (
        coloured.replace("━", " ").replace("╺", " ").replace("╸", " ").split()
    )
    # The part of a bar that is not yet done must not look like the other.
    assert plain.count("━") < coloured.count("━")


def test_ascii_terminals_get_ascii():
    console = Console(width=80, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), legacy_windows=False)
    console.print(RunView(replace(PROGRESS, rewards=("compressibility",))))
    console.file.flush()  # an unknown character would have raised


@pytest.mark.parametrize(
    ("values", "planned", "width", "drawn"),
    [
        ([], 4, 10, "    "),
        ([1.0], 4, 10, "▄   "),
        ([0.0, 7.0], 4, 10, "▁█  "),
        ([float(n) for n in range(8)], 8, 10, BLOCKS),
        ([0.0, 0.0, 7.0, 7.0], 8, 4, "▁█  "),
        ([0.0, 2.0, 7.0, 7.0], 4, 2, "▁█"),
        ([1.0, None, float("nan"), 3.0], 4, 4, "▁  █"),
    ],
)
def test_sparklines(values, planned, width, drawn):
    assert draw_sparkline(values, planned, width) == drawn


def test_a_sparkline_of_the_same_values_does_not_move_as_the_run_goes_on():
    values = [float(number % 5) for number in range(60)]
    lines = [draw_sparkline(values[:done], 120, 40) for done in range(30, 61, 3)]
    for earlier, later in pairwise(lines):
        assert later.startswith(earlier.rstrip())


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (-2.7136, "-2.714"), (1430.758, "1430.758"), (-14307.58, "-1.4e+04")]
)
def test_values_fit_their_column(value, text):
    assert format_value(value) == text


def test_events_move_the_view():
    progress = replace(PROGRESS, phase=None, idle=True)
    for event in (
        PhaseStarted("score", 12, 8, "images"),
        Advanced(3),
        Advanced(2),
        IterationTrained(13, make_metrics(12)),
        EVALUATED,
        Warned("mind this"),
        HackingFound(13, "recognition", "'recognition' fell", stops=True),
    ):
        progress = follow_event(progress, event)
    assert progress.phase == PhaseProgress("score", 5, 8, "images")
    assert (progress.done, progress.evaluated, progress.idle) == (13, (0, 10, 12), False)
    assert progress.warnings[1:] == (
        "mind this",
        "hacking, at iteration 13: 'recognition' fell; stopped here; to continue, use --on-hacking warn",
    )


class StoppedError(Exception):
    """What ends a run from outside."""


def show(events: list[Event], *, stop: bool = False) -> str:
    """Show a run's events in a terminal; give what is on its screen and above in the end."""
    display = Display(quiet=False, as_json=False, iterations=40)
    file = io.StringIO()
    display.console = Console(
        file=file, force_terminal=True, width=80, height=40, soft_wrap=True, legacy_windows=False
    )
    display._draws = True

    def play():
        yield from events
        if stop:
            raise StoppedError

    if stop:
        with pytest.raises(StoppedError):
            display.follow(play(), replace(PROGRESS, warnings=()))
    else:
        display.follow(play(), replace(PROGRESS, warnings=()))
    return read_screen(file.getvalue())


@pytest.mark.parametrize("stop", [False, True])
def test_no_warning_is_lost_and_the_newest_stand_below_the_last_state(stop):
    events: list[Event] = [PhaseStarted("sample", 12, 8, "images")]
    for number in range(WARNINGS + 4):
        events += [Warned(say(number)), Advanced(1)]
    events.append(EVALUATED)
    shown = show(events, stop=stop)
    above, title, view = shown.partition(TITLE)
    assert title
    assert TITLE not in view
    told = [" ".join(part.split()) for part in (above + view).split("warning: ")[1:]]
    for number, words in enumerate(told):
        assert words.startswith(say(number)), shown
    assert above.count("warning: ") == 4
    assert view.count("warning: ") == WARNINGS
    assert view.endswith("they teach nothing")
    assert "held-out evaluation, checkpoint 12:" in above
    assert "7 of 8" in view


def test_iterations_are_in_the_view_and_not_lines_above_it():
    shown = show([IterationTrained(13, make_metrics(12))])
    assert "13 of 40" in shown
    assert "iteration 13/40" not in shown


def test_a_view_is_drawn_in_a_few_milliseconds():
    rows = tuple(make_metrics(number, ("compressibility",)) for number in range(1000))
    progress = replace(PROGRESS, rows=rows, iterations=1000)
    console = Console(width=100, file=io.StringIO())
    console.print(RunView(progress))
    started = time.process_time()
    console.print(RunView(progress))
    assert time.process_time() - started < 0.2
