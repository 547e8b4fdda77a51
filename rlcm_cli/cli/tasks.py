"""`rlcm tasks`."""

from __future__ import annotations

import tomllib
from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_task
from rlcm_cli.cli.streams import print_data


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("tasks", epilog="Example: rlcm tasks show compression > mine.toml")(tasks_command)


def tasks_command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[list] | [show] NAME",
            help="Name of a preset to print as TOML.",
            show_default="list",
            autocompletion=complete_task,
        ),
    ] = [],
    as_json: o.JsonOption = False,
) -> None:
    """List the presets, or print one as TOML to start a configuration from."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.tables import print_rows
    from rlcm_cli.cli.terminal import open_console
    from rlcm_cli.config import task_names, task_text
    from rlcm_cli.errors import ConfigError

    match words:
        case [] | ["list"]:
            presets = [(task, task_text(task).splitlines()[0].lstrip("# ")) for task in task_names()]
            if as_json:
                print_json({"tasks": [{"name": name, "summary": summary} for name, summary in presets]})
                return
            console = open_console(markup=False, highlight=False)
            if console.is_terminal:
                print_rows(console, presets)
            else:
                for name, summary in presets:
                    typer.echo(f"{name:<24} {summary}")
        case ["show", name] | [name] if name != "show":
            if as_json:
                print_json({"name": name, "settings": tomllib.loads(task_text(name))})
            else:
                print_data(task_text(name))
        case _:
            raise ConfigError(
                f"tasks {' '.join(words)}: write `rlcm tasks`, or `rlcm tasks show NAME` for one of them"
            )
