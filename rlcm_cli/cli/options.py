"""Options that several commands share, and the configuration that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlcm_cli.config import Config

CONFIGURATION = "Configuration"
OUTPUT = "Output"

TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="Preset to start from; `rlcm tasks` lists them.", show_default=False),
]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run directory.", show_default="runs/TASK", file_okay=False)
]
ExistingRunOption = Annotated[Path, typer.Option("--run", help="Run directory.", file_okay=False)]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file over the preset.", rich_help_panel=CONFIGURATION, show_default=False),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="A setting, such as train.learning_rate=3e-4; repeatable, over --config.",
        rich_help_panel=CONFIGURATION,
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="emoji-lcm (embedded), a pipeline folder, or a hub id.",
        rich_help_panel=CONFIGURATION,
        show_default=False,
    ),
]
SamplesOption = Annotated[
    int | None,
    typer.Option("--samples", help="Images an iteration.", rich_help_panel=CONFIGURATION, show_default=False),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps", help="Model calls an image, 2 or more.", rich_help_panel=CONFIGURATION, show_default=False
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of all randomness.", rich_help_panel=CONFIGURATION, show_default=False),
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, float16 or bfloat16.", rich_help_panel=CONFIGURATION, show_default=False),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Start from this LoRA: a run, a checkpoint or a file.",
        rich_help_panel=CONFIGURATION,
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=CONFIGURATION, show_default=False),
]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        help="Share of the shards, K/N with K from 0; `auto` reads torchrun's or Slurm's variables.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="End with one machine-readable line.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and warnings only.", rich_help_panel=OUTPUT)
]


def resolve_run(
    root: Path | None,
    *,
    task: str | None,
    config_file: Path | None,
    assignments: list[str],
    start: str | None = None,
    flags: dict[str, Any],
) -> tuple[Path, Config]:
    """Find the run directory and the configuration that a command line asks for.

    With neither task nor file, an existing run's own configuration is the base of the other options.
    """
    from rlcm_cli.config import override_config, resolve_config
    from rlcm_cli.phases.run import open_run

    if start is not None:
        flags = {**flags, **_adapter_flags(start)}
    if root is not None and task is None and config_file is None and (root / "config.json").exists():
        return root, override_config(open_run(root).config, assignments=assignments, flags=flags)
    config = resolve_config(task, config_file=config_file, assignments=assignments, flags=flags)
    return root or Path("runs") / config.task, config


def _adapter_flags(start: str) -> dict[str, Any]:
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.store.adapters import find_adapter, read_adapter_settings

    file = find_adapter(start)
    if file is None:
        raise ConfigError(f"--from {start}: no such run, checkpoint or LoRA file")
    stated = read_adapter_settings(file)
    return {
        "lora.start": start,
        "lora.rank": stated.rank,
        "lora.alpha": stated.alpha,
        "lora.target_modules": list(stated.target_modules),
    }
