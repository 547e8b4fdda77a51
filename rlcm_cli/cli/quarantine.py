"""`rlcm quarantine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.streams import say
from rlcm_cli.store.remote.objects import is_url


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "quarantine",
        epilog="Example: rlcm quarantine runs/a/checkpoints/000003",
    )(quarantine_command)


def quarantine_command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="File or folder of a run that failed a check.", show_default=False)
    ],
    as_json: o.JsonOption = False,
) -> None:
    """Move a damaged file of a run, with its receipt, aside so that its phase can regenerate it."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.store.quarantine import quarantine, quarantine_remote

    paths = [str(moved) for moved in (quarantine_remote(path) if is_url(path) else quarantine(Path(path)))]
    if as_json:
        print_json({"moved_to": paths})
    for moved in paths if not as_json else ():
        say(f"moved to {moved}")
