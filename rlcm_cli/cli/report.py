"""`rlcm report`."""

from __future__ import annotations

import os.path
import re
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_run
from rlcm_cli.cli.location import expand_folder, open_location
from rlcm_cli.cli.streams import announce, say
from rlcm_cli.wording import format_size

FILE = "report.html"
ONLY_SEED = re.compile(r"seed-\d+")
"""Name of a folder that `rlcm loop --seed 1,2` made."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report", epilog="Example: rlcm report runs/compression")(report_command)


def report_command(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Run directories, or folders of runs; several are compared.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File to write.",
            show_default=f"RUN/{FILE}; for several runs, {FILE} here",
            dir_okay=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="N|best",
            help="Report each run up to this checkpoint: a number, last, best, or best:REWARD.",
            show_default="all of it",
        ),
    ] = None,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Write one HTML file about one or more runs: curves, images during training, samples, prompts, settings."""
    announce(", ".join(named), quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.display import print_json
    from rlcm_cli.report.compare.runs import open_compared
    from rlcm_cli.report.html.page import write_report
    from rlcm_cli.runs.choosing import choose_checkpoint
    from rlcm_cli.runs.staging import stage_scores

    named = [run for name in named for run in expand_folder(name)]
    with ExitStack() as stack:
        locations = [stack.enter_context(open_location(name, stage_scores)) for name in named]
        here = len(locations) > 1 or locations[0].url is not None
        path = out or (Path(FILE) if here else locations[0].existing / FILE)
        runs = [
            open_compared(location.existing, last_part(name)) for name, location in zip(named, locations, strict=True)
        ]
        limits = [choose_checkpoint(run.layout, run.config, checkpoint) for run in runs] if checkpoint else []
        write_report(runs, path, [found.number for found in limits])
    size = path.stat().st_size
    if not quiet and not as_json:
        for name, found in zip(named, limits, strict=False):
            say(f"{name}: up to {found}")
    if as_json:
        print_json({"report": str(path), "bytes": size})
    elif not quiet:
        say(f"{path}: {format_size(size)}; open it in a browser")


def last_part(named: str) -> str:
    """Return the last part of a path or URL as typed; empty if it does not name a folder, as `.` does.

    Of a folder that only tells a run's seed, the part above comes with it, unless that is the home folder.
    """
    path = PurePosixPath(named.replace("\\", "/"))
    name = "" if path.name == ".." else path.name
    above = path.parent
    if ONLY_SEED.fullmatch(name) and above.name not in ("", "..") and str(above) != os.path.expanduser("~"):
        return f"{above.name}/{name}"
    return name
