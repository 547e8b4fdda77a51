"""`rlcm rewards`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_reward


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("rewards", epilog="Example: rlcm rewards aesthetic")(rewards_command)


def rewards_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show one reward with its settings.",
            show_default="all",
            autocompletion=complete_reward,
        ),
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """List the rewards: what each measures, its range, what it needs, and whether it can run here now."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.tables import print_rows
    from rlcm_cli.cli.terminal import open_console
    from rlcm_cli.rewards import REWARDS
    from rlcm_cli.toml_files import write_key

    described = [describe(name)] if name else [describe(known) for known in REWARDS]
    if as_json:
        print_json({"rewards": described})
        return
    console = open_console(markup=False, highlight=False)
    if name:
        entries = {key: value for key, value in described[0].items() if key != "settings"}
        entries |= {f"setting {setting}": default for setting, default in described[0]["settings"].items()}
        print_rows(console, [(key, str(value)) for key, value in entries.items()])
        if described[0]["settings"]:
            typer.echo(f"change a setting with --set '{write_key('reward_settings', name, 'KEY')}=VALUE'")
        return
    rows = []
    for entry in described:
        about = f"{entry['measures']}\nrange: {entry['range']}\nneeds: {entry['needs']}"
        if entry["differentiable"] == "yes":
            about += "\ndifferentiable: --last-step backprop can train for it"
        rows.append((entry["name"], "yes" if entry["here now"] == "yes" else "no", about))
    print_rows(console, rows, header=("reward", "here now", "what it measures, its range, what it needs"), apart=True)
    typer.echo(
        "settings of a reward, and why it cannot run: rlcm rewards NAME; your own reward: --reward FILE.py:FUNCTION"
    )


def describe(name: str) -> Mapping[str, Any]:
    """Describe a reward as plain values."""
    from rlcm_cli.rewards import RewardSpec

    spec = RewardSpec(name)
    entry = spec.entry
    obstacle = spec.find_obstacle()
    return {
        "name": name,
        "measures": entry.description,
        "range": entry.value_range,
        "needs": entry.requirements,
        "differentiable": "yes" if entry.differentiable else "no",
        "sees": "all images of a prompt together" if entry.set_level else "one image",
        "here now": f"no: {obstacle}" if obstacle else "yes",
        "settings": dict(entry.defaults),
    }
