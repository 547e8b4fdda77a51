"""`rlcm runs`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_run
from rlcm_cli.cli.location import local_path
from rlcm_cli.cli.streams import say
from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.remote.objects import is_url
from rlcm_cli.wording import command, count, format_age, format_size

if TYPE_CHECKING:
    from rlcm_cli.report.run.listing import ListedRun

HEADER = ("run", "task", "state", "iterations", "reward", "disk", "changed")
STATE = HEADER.index("state")
NOTHING = "–"
STATES = {"done": "green", "ended": "green", "running": "cyan", "stopped": "yellow", "damaged": "red"}
"""State of a run → its colour."""
WIDTH_OF_A_FILE = 10_000
"""Columns; a file has no width, and rich would fold at 80."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("runs", epilog="Example: rlcm runs")(runs_command)


def runs_command(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Folder to look for runs in, also in its folders.", autocompletion=complete_run
        ),
    ] = "runs",
    as_json: o.JsonOption = False,
) -> None:
    """List the runs in a folder: task, state, iterations, reward, disk and last change, the newest first.

    A stopped run has written nothing for much longer than an iteration takes; to resume it, rerun its command.
    """
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.report.run.listing import list_runs

    if is_url(folder):
        look = command("watch", "--once", folder.rstrip("/") + "/RUN")
        raise ConfigError(f"{folder}: only folders of this machine can be listed; look at one run with `{look}`")
    path = local_path(folder)
    if not path.is_dir():
        raise MissingFileError(
            f"{folder}: there is no such folder; name the one that holds your runs, or start a run with "
            f"`{command('loop', '--task', 'compression')}`"
        )
    now = time.time()
    found = list_runs(path)
    if as_json:
        total = sum(run.bytes for run in found)
        print_json({"folder": folder, "runs": [to_values(run, now) for run in found], "bytes": total})
    elif found:
        print_table([to_cells(run, now) for run in found])
        say(f"{count(len(found), 'run')}, {format_size(sum(run.bytes for run in found))}")
        for run in found:
            if run.fault:
                say(f"damaged: {run.fault}")
    else:
        say(f"{folder}: holds no runs; start one with `{command('loop', '--task', 'compression')}`")


def to_values(run: ListedRun, now: float) -> dict[str, Any]:
    """Return what is known of a run as plain values."""
    from rlcm_cli.cli.watch import to_values as to_progress
    from rlcm_cli.report.run.listing import name_state

    known: dict[str, Any] = {"run": str(run.root), "state": name_state(run, now), "bytes": run.bytes}
    if run.config is None or run.progress is None:
        return {**known, "fault": run.fault}
    rows = run.progress.rows
    return {
        **known,
        "task": run.config.task,
        "model": run.config.model.name,
        "seed": run.config.seed,
        "reward_first": rows[0].reward_mean if rows else None,
        "reward_last": rows[-1].reward_mean if rows else None,
        **to_progress(run.progress),
    }


def to_cells(run: ListedRun, now: float) -> Sequence[str]:
    """Return what is known of a run as the cells of its row, in the order of `HEADER`."""
    from rlcm_cli.report.run.listing import name_state

    state, progress = name_state(run, now), run.progress
    if run.config is None or progress is None:
        return (str(run.root), NOTHING, state, NOTHING, NOTHING, format_size(run.bytes), NOTHING)
    iterations = f"{progress.done} of {progress.planned}"
    age = NOTHING if progress.changed is None else format_age(now - progress.changed)
    reward = " → ".join(_rewards(run))
    return (str(run.root), run.config.task, state, iterations, reward or NOTHING, format_size(run.bytes), age)


def _rewards(run: ListedRun) -> Iterator[str]:
    """Yield the mean training reward of the first iteration and of the last one; joint tasks have no common scale."""
    from rlcm_cli.cli.live import format_value

    rows = run.progress.rows if run.progress and not run.progress.tasks else ()
    yield from (format_value(row.reward_mean) for row in (*rows[:1], *rows[1:][-1:]))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a row per run; if the window is too narrow for the longest, each run takes a line below its name."""
    from rich.table import Table
    from rich.text import Text

    from rlcm_cli.cli.terminal import open_console

    console = open_console(markup=False, highlight=False)
    if not console.is_terminal:
        console = open_console(markup=False, highlight=False, width=WIDTH_OF_A_FILE)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in HEADER:
        table.add_column(name, no_wrap=True, justify="right" if name == "disk" else "left")
    for row in rows:
        table.add_row(*row[:STATE], Text(row[STATE], STATES[row[STATE]]), *row[STATE + 1 :])
    unbounded = console.options.update(width=WIDTH_OF_A_FILE)
    if console.measure(table, options=unbounded).maximum <= console.width:
        console.print(table)
        return
    for name, *cells in rows:
        console.print(Text(name, "bold"))
        told = (cell + " iterations" * (head == "iterations") for head, cell in zip(HEADER[1:], cells, strict=True))
        console.print("  " + ", ".join(text for text in told if not text.startswith(NOTHING)))
