"""`rlcm watch`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_run
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.streams import say
from rlcm_cli.errors import MissingFileError
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from rich.console import Console

    from rlcm_cli.report.run.progress import RunProgress


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("watch", epilog="Example: rlcm watch runs/compression --every 5")(watch_command)


def watch_command(
    named: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run directory, or its URL.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ],
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", min=0.1, help="Polling interval.")] = 3.0,
    once: Annotated[bool, typer.Option("--once", help="Print the current progress and exit.")] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Show a run's progress from its files, wherever it is running; exits when the run is done.

    It needs no model and changes nothing: Ctrl-C ends the view, not the run. Piped, it prints one line per iteration.
    """
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.live import RunView
    from rlcm_cli.cli.terminal import open_console

    console = open_console(highlight=False)
    look = partial(read_watched_run, named)
    if as_json:
        *_, last = [look(None)] if once else repeat(look, every)
        print_json(to_values(last))
    elif once:
        console.print(RunView(look(None)))
    elif console.is_terminal:
        watch_screen(console, repeat(look, every))
    else:
        watch_lines(repeat(look, every))


def to_values(progress: RunProgress) -> dict[str, Any]:
    """Return the progress of a run as plain values: what the view shows, and the newest iteration's metrics."""
    from rlcm_cli.report.run.progress import seconds_an_iteration, seconds_left, seconds_still

    now = time.time()
    return {
        "iterations": progress.done,
        "iterations_planned": progress.planned,
        "phase": progress.phase.name if progress.phase else None,
        "finished": progress.finished,
        "ended": progress.ended or None,
        "stopped": seconds_still(progress, now) is not None,
        "seconds_since_change": None if progress.changed is None else now - progress.changed,
        "seconds_per_iteration": seconds_an_iteration(progress.rows),
        "seconds_left": seconds_left(progress, now),
        "evaluated": list(progress.evaluated),
        "warnings": list(progress.warnings),
        "metrics": progress.rows[-1].as_row() if progress.rows else None,
    }


def read_watched_run(named: str, before: RunProgress | None) -> RunProgress:
    """Read the progress of a run; `before`: an earlier reading. Raises `MissingFileError` if there is no run."""
    from rlcm_cli.cli.live import look_at
    from rlcm_cli.config import parse_config
    from rlcm_cli.report.run.progress import add_alarms
    from rlcm_cli.runs.staging import stage_progress
    from rlcm_cli.store.layout import RunLayout
    from rlcm_cli.store.run import read_config

    with open_location(named, stage_progress) as location:
        layout = RunLayout(location.existing)
        if not layout.config.exists():
            start = command("loop", "--task", "NAME", "--run", named)
            raise MissingFileError(
                f"{named}: there is no run here, or not yet (no config.json); start one with `{start}`"
            )
        config = parse_config(read_config(layout))
        return add_alarms(look_at(layout, config, named, before), config)


def repeat(look: Callable[[RunProgress | None], RunProgress], every: float) -> Iterator[RunProgress]:
    """Yield a reading every so many seconds, until two in a row find the run finished."""
    progress = look(None)
    yield progress
    while True:
        time.sleep(every)
        earlier, progress = progress, look(progress)
        yield progress
        # Between two iterations, a run that was extended looks finished.
        if earlier.finished and progress.finished:
            return


def watch_screen(console: Console, readings: Iterator[RunProgress]) -> None:
    """Keep the newest reading on the screen."""
    from rlcm_cli.cli.live import LiveRun

    with LiveRun(console, next(readings)) as live:
        for progress in readings:
            live.progress = progress


def watch_lines(readings: Iterator[RunProgress]) -> None:
    """Print a line for each iteration, past ones first, and for each new warning."""
    from rlcm_cli.cli.display import describe_iteration

    done, warned = 0, set[str]()
    for progress in readings:
        for number, row in enumerate(progress.rows[done:], done + 1):
            say(describe_iteration(number, progress.planned, row))
        done = progress.done
        for message in progress.warnings:
            if message not in warned:
                warned.add(message)
                say(message)
        sys.stdout.flush()
