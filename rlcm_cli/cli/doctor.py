"""`rlcm doctor`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import ask_model
from rlcm_cli.cli.setting_options import FLAGS, chosen_settings, command_with
from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import to_line

if TYPE_CHECKING:
    from rich.console import Console

    from rlcm_cli.config import Config
    from rlcm_cli.measuring.doctor import Finding

STYLES = {"ok": "green", "note": "yellow", "problem": "red"}
TASK = "compression"
"""Preset whose settings a model is looked at with; its reward is never asked."""
SETTINGS = (
    "model.name", "model.revision", "model.dtype", "model.quantize", "model.image_size", "runtime.device",
    "runtime.offload", "sample.steps",
)  # fmt: skip
"""Settings that are options of the command."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", cls=command_with(*SETTINGS), epilog="Example: rlcm doctor --model stabilityai/sdxl-turbo")(
        doctor_command
    )


def doctor_command(
    context: typer.Context,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Parent folder for runs.", file_okay=False)
    ] = Path("runs"),
    tries: Annotated[
        bool,
        typer.Option("--try", help="Also load the model of --model, draw with it, train it one step and export that."),
    ] = False,
    assignments: o.SetOfModelOption = [],
    as_json: o.JsonOption = False,
) -> None:
    """Check this machine: what works, what is missing, how to fix it; exits with 1 if something needed is broken.

    With --model, also say what a model is and what it takes here, from its configurations only; with --try, load it
    and take every step of a run once.
    """
    from rlcm_cli.measuring import doctor

    flags = chosen_settings(context)
    resolve, name = settle(flags, assignments, tries=tries), flags["model.name"]
    if resolve is None:
        show(doctor.examine(runs), as_json=as_json)
    elif tries:
        show(doctor.try_model(runs, resolve, flags["sample.steps"]), as_json=as_json, busy=f"trying {name}")
    else:
        show(doctor.examine_model(runs, resolve), as_json=as_json, busy=f"looking at {name}")


def settle(flags: Mapping[str, Any], assignments: Sequence[str], *, tries: bool) -> Callable[[], Config] | None:
    """Return what resolves the configuration that names a model; None where no model is named.

    Raises `ConfigError` for settings that cannot be, before anything is looked at.
    """
    from rlcm_cli.config import resolve_settings

    given = [FLAGS[key].name for key, value in flags.items() if value is not None] + ["--set"] * bool(assignments)
    given += ["--try"] * tries
    if flags["model.name"] is not None:
        resolve = functools.partial(resolve_settings, [TASK], assignments=assignments, flags=flags)
        resolve()
        return lambda: resolve(recommend=ask_model)[0]
    if given:
        raise ConfigError(f"{given[0]} is about a model; name one by --model NAME")
    return None


def show(findings: Iterable[Finding], *, as_json: bool, busy: str = "") -> None:
    """Print a line for each finding as it comes, or all as JSON; exit with 1 where one is a problem.

    `busy` says in a terminal what goes on until then.
    """
    from dataclasses import asdict

    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.terminal import open_console

    console = open_console(highlight=False)
    shown = []
    waits = bool(busy) and console.is_terminal and not as_json
    with console.status(to_line(busy), spinner="line") if waits else contextlib.nullcontext():
        for finding in findings:
            shown.append(finding)
            if not as_json:
                print_finding(console, finding)
    healthy = all(finding.status != "problem" for finding in shown)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in shown]})
    if not healthy:
        raise typer.Exit(1)


def print_finding(console: Console, finding: Finding) -> None:
    """Print a finding: wrapped in a terminal, elsewhere as one line, however long."""
    from rich.text import Text

    from rlcm_cli.cli.tables import print_rows

    advice = f" → {finding.advice}" if finding.advice else ""
    row = (Text(f"{finding.status:<7}", STYLES[finding.status]), f"{finding.topic:<17}", finding.found + advice)
    if console.is_terminal:
        print_rows(console, [row])
    else:
        console.print(Text(" ").join([row[0], Text(row[1]), Text(row[2])]), soft_wrap=True)
