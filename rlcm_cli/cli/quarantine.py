"""`rlcm quarantine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.store.objects import is_url


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "quarantine",
        epilog="Example: rlcm quarantine runs/a/rollouts/000003/shard-00000-of-00001.safetensors",
    )(run)


def run(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="File or folder of a run that a check refused.", show_default=False)
    ],
) -> None:
    """Move a damaged file of a run, with its receipt, out of the way, so that its phase makes it again."""
    from rlcm_cli.store.quarantine import quarantine, quarantine_remote

    for moved in quarantine_remote(path) if is_url(path) else quarantine(Path(path)):
        typer.echo(f"moved to {moved}")
