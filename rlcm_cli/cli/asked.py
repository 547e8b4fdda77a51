"""The run and the configuration that a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.cli.streams import say

if TYPE_CHECKING:
    from rlcm_cli.config import Config, ModelSettings
    from rlcm_cli.recommendation import Recommendation
    from rlcm_cli.runs.run import Run


@dataclass(frozen=True)
class Asked:
    """What a command line says of a run's configuration."""

    tasks: Sequence[str] = ()
    config_file: Path | None = None
    """A TOML file or a run."""
    assignments: Sequence[str] = ()
    """`KEY=VALUE` of each `--set`."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key → value of an option; None means "not given"."""
    start: str | None = None
    """LoRA of `--from`."""

    @property
    def copies_run(self) -> bool:
        """Whether the settings come from another run."""
        return self.config_file is not None and self.config_file.suffix != ".toml"


def resolve_run(root: Path | None, asked: Asked, *, loads_model: bool = True) -> tuple[Path, Config]:
    """Find the run directory and the configuration that a command line asks for.

    With neither a task nor a file, an existing run's own configuration is the base of the other options.

    Args:
        root: The directory that is named; None: `runs/TASK`.
        asked: The rest of the command line.
        loads_model: Whether this command loads the model; if not, the model need not be reachable from here.
    """
    from rlcm_cli.config import override_config, resolve_settings
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.toml_files import has_byte_order_mark

    flags = {**asked.flags, **(_adapter_flags(asked.start) if asked.start is not None else {})}
    if root is not None and not asked.tasks and asked.config_file is None:
        if not (root / "config.json").exists():
            raise ConfigError(
                f"{root}: there is no run here, and no task is given to start one; use --task NAME (`rlcm tasks` "
                "lists them)"
            )
        return root, override_config(open_run(root).config, assignments=asked.assignments, flags=flags)
    config, notes = resolve_settings(
        asked.tasks,
        config_file=asked.config_file,
        assignments=asked.assignments,
        flags=flags,
        recommend=ask_model if loads_model else ask_model_if_here,
    )
    for line in notes:
        say(f"note: {line}", err=True)
    if asked.copies_run:
        from rlcm_cli.cli.consent import named_texts
        from rlcm_cli.runs.inputs import refuse_unnamed

        named = named_texts(asked.assignments, list(flags.values()))
        refuse_unnamed(config, named, f"--config {asked.config_file}")
    file = asked.config_file
    if file is not None and file.is_file() and has_byte_order_mark(file):
        say(f"note: {file} begins with a byte order mark, which other TOML readers reject", err=True)
    return root or Path("runs") / config.task, config


def ask_model(model: ModelSettings) -> Recommendation:
    """Return how a model recommends to be sampled, reading only its configuration files. Raises `ModelError`."""
    from rlcm_cli.models.parts import recommend

    return recommend(model.name, revision=model.pinned_revision, distilled_lora=model.distilled_lora)


def ask_model_if_here(model: ModelSettings) -> Recommendation | None:
    """Ask a model as `ask_model` does; if it cannot be reached or used, print a note and return None."""
    from rlcm_cli.errors import ModelError

    try:
        return ask_model(model)
    except ModelError as error:
        say(f"note: using the preset's sampler, because the model cannot be read: {error}", err=True)
        return None


def settle_sources(run: Run, asked: Asked) -> None:
    """Compare what a user names as a source with what the run started with. Raises as `settle_inputs`."""
    from rlcm_cli.cli.consent import named_texts
    from rlcm_cli.runs.inputs import prompt_sources, settle_inputs

    named = named_texts(asked.assignments, asked.flags.get("prompts.source"))
    if asked.tasks or asked.config_file is not None:
        named |= {*prompt_sources(run.config), *filter(None, [run.config.pretraining.source])}
    settle_inputs(run.layout, run.config, named)


def reopen_run(root: Path, *, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Run:
    """Open an existing run, with some of the settings that may change; None means "not given"."""
    from rlcm_cli.config import override_config
    from rlcm_cli.runs.run import create_run, open_run

    return create_run(root, override_config(open_run(root).config, assignments=assignments, flags=flags))


def parse_rewards(options: Sequence[str]) -> dict[str, float] | None:
    """Read `NAME[=WEIGHT]` options; None if there are none, so that the preset's rewards stay."""
    from rlcm_cli.errors import ConfigError

    rewards: dict[str, float] = {}
    for text in options:
        name, equals, weight = text.rpartition("=")
        try:
            name, value = (name, float(weight)) if equals else (text, 1.0)
        except ValueError:
            raise ConfigError(
                f"--reward {text}: '{weight}' is not a weight; write NAME or NAME=WEIGHT, for example "
                "--reward compressibility=0.2"
            ) from None
        if name in rewards:
            raise ConfigError(f"--reward {name} is given twice; give it once, with the weight it should have")
        rewards[name] = value
    return rewards or None


def _adapter_flags(start: str) -> dict[str, Any]:
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.store.adapters import read_adapter_settings
    from rlcm_cli.store.locate import find_adapter

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
