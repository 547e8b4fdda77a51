"""`rlcm doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.cli import options as o

STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", epilog="Example: rlcm doctor")(run)


def run(
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Folder that runs are to lie in.", file_okay=False)
    ] = Path("runs"),
    as_json: o.JsonOption = False,
) -> None:
    """Look at this machine: what works, what is missing, what to do; exit with 1 if something needed is broken."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.text import Text

    from rlcm_cli.cli.display import print_json
    from rlcm_cli.phases.doctor import examine

    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in examine(runs):
        findings.append(finding)
        if not as_json:
            advice = f" → {finding.advice}" if finding.advice else ""
            line = Text.assemble(
                (f"{finding.status:<8}", STYLES[finding.status]), f"{finding.topic:<16} {finding.found}{advice}"
            )
            console.print(line)
    healthy = all(finding.status != "problem" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    if not healthy:
        raise typer.Exit(1)
