"""`rlcm doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.cli import options as o

STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", epilog="Example: rlcm doctor")(doctor_command)


def doctor_command(
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Parent folder for runs.", file_okay=False)
    ] = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Check this machine: what works, what is missing, how to fix it; exits with 1 if something needed is broken."""
    from dataclasses import asdict

    from rich.text import Text

    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.tables import print_rows
    from rlcm_cli.cli.terminal import open_console
    from rlcm_cli.measuring.doctor import examine

    console = open_console(highlight=False)
    findings = []
    for finding in examine(runs):
        findings.append(finding)
        if not as_json:
            advice = f" → {finding.advice}" if finding.advice else ""
            row = (
                Text(f"{finding.status:<7}", STYLES[finding.status]),
                f"{finding.topic:<17}",
                finding.found + advice,
            )
            if console.is_terminal:
                print_rows(console, [row])
            else:  # one line each, however long
                console.print(Text(" ").join([row[0], Text(row[1]), Text(row[2])]), soft_wrap=True)
    healthy = all(finding.status != "problem" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    if not healthy:
        raise typer.Exit(1)
