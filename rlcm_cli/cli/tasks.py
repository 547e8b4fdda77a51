"""`rlcm tasks`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcm_cli.cli.streams import print_data


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("tasks", epilog="Example: rlcm tasks show compression > mine.toml")(run)


def run(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[list] | [show] NAME", help="A preset's name prints it as TOML.", show_default="list"),
    ] = [],  # noqa: B006
) -> None:
    """List the presets, or print one as TOML to start a configuration from."""
    from rlcm_cli.config import task_names, task_text
    from rlcm_cli.errors import ConfigError

    match words:
        case [] | ["list"]:
            for task in task_names():
                summary = task_text(task).splitlines()[0].lstrip("# ")
                typer.echo(f"{task:<24} {summary}")
        case ["show", name] | [name] if name != "show":
            print_data(task_text(name))
        case _:
            raise ConfigError(
                f"tasks {' '.join(words)}: write `rlcm tasks`, or `rlcm tasks show NAME` for one of them"
            )
