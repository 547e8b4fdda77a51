"""Options that several commands share and that are not a single setting of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import rlcm_cli
from rlcm_cli.cli import completion as c
from rlcm_cli.cli.setting_options import PANEL
from rlcm_cli.discovery import list_kinds

SAMPLER_KINDS = list_kinds([str(Path(rlcm_cli.__file__).with_name("samplers"))])
OUTPUT = "Output"


def setting(
    flag: str,
    metavar: str,
    help: str,  # noqa: A002
    default: str | bool = False,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """Make an option of the panel of settings.

    `default` is what the help shows as the default; `complete` returns the values that begin with what is typed.
    """
    return typer.Option(
        flag,
        metavar=metavar,
        help=help,
        rich_help_panel=PANEL,
        show_default=default,
        autocompletion=complete,
    )


TaskOption = Annotated[
    list[str],
    typer.Option(
        "--task",
        metavar="NAME",
        help="Preset to start from (`rlcm tasks` lists them); repeat it to train several together.",
        show_default=False,
        autocompletion=c.complete_task,
    ),
]


def refuse_file(named: str | None) -> str | None:
    """Refuse a file where a directory is asked for."""
    if named is not None and Path(named).is_file():
        raise typer.BadParameter(f"directory '{named}' is a file")
    return named


def _run_option(default: str | bool = False) -> Any:
    text = "Run directory, or its URL such as s3://BUCKET/RUN."
    return typer.Option(
        "--run", metavar="DIR", help=text, callback=refuse_file, show_default=default, autocompletion=c.complete_run
    )


RunOption = Annotated[str | None, _run_option("runs/TASK")]
ExistingRunOption = Annotated[str, _run_option()]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="K/N",
        help="This machine's share of the shards, K from 0 to N − 1; `auto` reads torchrun's or Slurm's variables.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    setting("--config", "FILE|RUN", "Settings that override the preset: a TOML file, or a run to copy them from."),
]


def _set_option(text: str) -> Any:
    return setting("--set", "KEY=VALUE", text, False, c.complete_setting)


SetOption = Annotated[
    list[str], _set_option("A setting, such as train.learning_rate=3e-4; overrides --config; repeatable.")
]
SetOfRunOption = Annotated[
    list[str], _set_option("A setting that may change when resuming, such as runtime.tf32=true; repeatable.")
]
SetOfModelOption = Annotated[
    list[str], _set_option("Any other setting, such as model.distilled_lora=OWNER/NAME; repeatable.")
]
SetOfPresetOption = Annotated[
    list[str],
    _set_option("A setting that overrides the preset, such as train.learning_rate=3e-4; repeatable."),
]
RewardOption = Annotated[
    list[str],
    setting(
        "--reward",
        "NAME[=WEIGHT]",
        "Reward to train for: a name from `rlcm rewards`, FILE.py:FUNCTION, or a server's address; repeatable.",
        "the preset's",
        c.complete_reward,
    ),
]
FromOption = Annotated[
    str | None, setting("--from", "PATH", "LoRA to start from: a run, a checkpoint or a file.", False, c.complete_run)
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.", autocompletion=c.complete_device),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Run reward code although only a configuration or run names it."),
]
AllowHostOption = Annotated[
    list[str],
    typer.Option(
        "--allow-host",
        metavar="HOST[:PORT]",
        help="Send images and a token to this host although only a configuration or run names it; repeatable.",
    ),
]
AllowChangedOption = Annotated[
    bool,
    typer.Option(
        "--allow-changed-code",
        help="Continue although a reward's code, weights or server changed since the run last used it.",
    ),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Ignore this machine's score cache.")]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="End with one machine-readable line on stdout.", rich_help_panel=OUTPUT),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and warnings only.", rich_help_panel=OUTPUT)
]
