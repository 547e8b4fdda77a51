"""`rlcm inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.cli import options as o


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect", epilog="Example: rlcm inspect runs/compression --verify")(run)


def run(
    path: Annotated[Path, typer.Argument(help="A run, a checkpoint, a shard or a LoRA file.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Check every digest of a run.")] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Tell what a file or folder of a run holds; with --verify, exit with 4 if a file of a run is damaged."""
    from rich.console import Console
    from rich.table import Table

    from rlcm_cli.errors import ConfigError, StoreError
    from rlcm_cli.store.inspection import describe, verify_run
    from rlcm_cli.store.layout import RunLayout

    described = describe(path)
    if verify:
        if described["kind"] != "run":
            raise ConfigError(f"{path}: --verify checks a whole run; other files are checked as they are read")
        described["faults"] = verify_run(RunLayout(path))
    if as_json:
        typer.echo(json.dumps(described, ensure_ascii=False))
    else:
        table = Table(show_header=False, box=None)
        for key, value in described.items():
            table.add_row(key, json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value))
        Console().print(table)
    if described.get("faults"):
        raise typer.Exit(StoreError.exit_code)
