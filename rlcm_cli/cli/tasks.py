"""`rlcm tasks`."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("tasks", epilog="Example: rlcm tasks compression > mine.toml")(run)


def run(
    name: Annotated[str | None, typer.Argument(help="Preset to print as TOML.", show_default=False)] = None,
) -> None:
    """List the presets, or print one as TOML to start a configuration from."""
    from rlcm_cli.config import task_names, task_text

    if name is not None:
        typer.echo(task_text(name), nl=False)
        return
    for task in task_names():
        summary = task_text(task).splitlines()[0].lstrip("# ")
        typer.echo(f"{task:<24} {summary}")
