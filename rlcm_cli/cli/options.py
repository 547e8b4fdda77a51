"""Options that several commands share, and the configuration or run that they name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import rlcm_cli
from rlcm_cli.cli import completion as c
from rlcm_cli.cli.streams import say
from rlcm_cli.discovery import list_kinds
from rlcm_cli.wording import to_line

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.config import Config, ModelSettings
    from rlcm_cli.models.latent_model import LatentModel
    from rlcm_cli.recommendation import Recommendation
    from rlcm_cli.runs.run import Run
    from rlcm_cli.store.score_cache import ScoreCache

OBJECTIVE_KINDS = list_kinds([str(Path(rlcm_cli.__file__).with_name("objectives"))])
SAMPLER_KINDS = list_kinds([str(Path(rlcm_cli.__file__).with_name("samplers"))])
CONFIGURATION = "Configuration"
OUTPUT = "Output"


def setting(
    flag: str,
    metavar: str,
    help: str,  # noqa: A002
    default: str | bool = False,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """Make an option that overrides a setting of the configuration.

    `default` is what the help says of none; `complete` gives a shell the values that begin like what is typed.
    """
    return typer.Option(
        flag,
        metavar=metavar,
        help=help,
        rich_help_panel=CONFIGURATION,
        show_default=default,
        autocompletion=complete,
    )


TaskOption = Annotated[
    list[str],
    typer.Option(
        "--task",
        metavar="NAME",
        help="Preset to start from, `rlcm tasks` lists them; several are trained together.",
        show_default=False,
        autocompletion=c.complete_task,
    ),
]


def _refuse_file(named: str | None) -> str | None:
    if named is not None and Path(named).is_file():
        raise typer.BadParameter(f"directory '{named}' is a file")
    return named


def _run_option(default: str | bool = False) -> Any:
    text = "Run directory, or its URL such as s3://BUCKET/RUN."
    return typer.Option(
        "--run", metavar="DIR", help=text, callback=_refuse_file, show_default=default, autocompletion=c.complete_run
    )


RunOption = Annotated[str | None, _run_option("runs/TASK")]
ExistingRunOption = Annotated[str, _run_option()]
WorkerOption = Annotated[
    str | None,
    typer.Option(
        "--worker",
        metavar="K/N",
        help="Share of the shards, K from 0 to N − 1; `auto` reads torchrun's or Slurm's variables.",
        show_default=False,
    ),
]
ConfigOption = Annotated[
    Path | None,
    setting("--config", "FILE|RUN", "Settings over the preset: a TOML file, or a run whose settings are taken."),
]
SetOption = Annotated[
    list[str],
    setting(
        "--set",
        "KEY=VALUE",
        "A setting, such as train.learning_rate=3e-4; repeatable, over --config.",
        False,
        c.complete_setting,
    ),
]
SetOfRunOption = Annotated[
    list[str],
    setting(
        "--set",
        "KEY=VALUE",
        "A setting that may change, such as reward_settings.NAME.KEY=1; repeatable.",
        False,
        c.complete_setting,
    ),
]
SetOfPresetOption = Annotated[
    list[str],
    setting(
        "--set",
        "KEY=VALUE",
        "A setting over the preset, such as train.learning_rate=3e-4; repeatable.",
        False,
        c.complete_setting,
    ),
]
PromptsOption = Annotated[
    str | None,
    setting(
        "--prompts",
        "SOURCE",
        "A file with a prompt a line, a table as FILE.csv:COLUMN, or a built-in set.",
        "the preset's",
    ),
]
RewardOption = Annotated[
    list[str],
    setting(
        "--reward",
        "NAME[=WEIGHT]",
        "Train for this: a name of `rlcm rewards`, FILE.py:FUNCTION, or a server's address; repeatable.",
        "the preset's",
        c.complete_reward,
    ),
]
WatchOption = Annotated[
    list[str],
    setting(
        "--watch",
        "NAME",
        "Reward that is scored but not trained on; warns where it falls; repeatable.",
        False,
        c.complete_reward,
    ),
]
AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Run the code of rewards that only a configuration or run names."),
]
AllowHostOption = Annotated[
    list[str],
    typer.Option(
        "--allow-host",
        metavar="HOST[:PORT]",
        help="Send images, and a token, to this host that only a configuration or run names; repeatable.",
    ),
]
AllowChangedOption = Annotated[
    bool,
    typer.Option(
        "--allow-changed-code",
        help="Go on though the code, the weights or the server of a reward changed since the run last used it.",
    ),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Score again what this machine has scored before.")]
ModelOption = Annotated[
    str | None,
    setting(
        "--model",
        "NAME",
        "emoji-lcm or emoji-diffusion (embedded), a pipeline folder, or a hub id.",
        False,
        c.complete_model,
    ),
]
SizeOption = Annotated[
    str | None,
    setting("--size", "WIDTHxHEIGHT", "Pixels of an image, such as 768x1024, or 512 for a square.", "the model's"),
]
SamplerOption = Annotated[
    str | None,
    setting(
        "--sampler",
        "KIND",
        f"How images are sampled: {', '.join(SAMPLER_KINDS)}; without it as the preset or another model says.",
        False,
        c.complete_words("sampler", "kind"),
    ),
]
ObjectiveOption = Annotated[
    str | None,
    setting(
        "--objective",
        "KIND",
        f"What is made of the rewards: {', '.join(OBJECTIVE_KINDS)}.",
        False,
        c.complete_words("objective", "kind"),
    ),
]
TrainOption = Annotated[
    str | None,
    setting(
        "--train",
        "WHAT",
        "What is trained: lora, an adapter; full, the denoiser itself.",
        False,
        c.complete_words("train", "parameters"),
    ),
]
LastStepOption = Annotated[
    str | None,
    setting(
        "--last-step",
        "MODE",
        "An LCM's last call: deterministic, noise (an action too) or backprop (through the reward).",
        False,
        c.complete_words("last_step", "mode"),
    ),
]
SamplesOption = Annotated[int | None, setting("--samples", "N", "Images per iteration.")]
StepsOption = Annotated[int | None, setting("--steps", "H", "Model calls per image, 2 or more.")]
SeedOption = Annotated[int | None, setting("--seed", "N", "Seed of all randomness.")]
DtypeOption = Annotated[
    str | None, setting("--dtype", "TYPE", "float32, float16 or bfloat16.", False, c.complete_words("model", "dtype"))
]
DeviceOption = Annotated[
    str | None, setting("--device", "NAME", "auto, cpu, cuda, cuda:1 or mps.", False, c.complete_device)
]
MemoryBudgetOption = Annotated[
    str | None,
    setting(
        "--memory-budget", "SIZE", "Memory for tensors, such as 8GB: micro-batch and checkpointing are fitted to it."
    ),
]
FromOption = Annotated[
    str | None, setting("--from", "PATH", "LoRA to start from: a run, a checkpoint or a file.", False, c.complete_run)
]
LogWithOption = Annotated[
    list[str],
    setting(
        "--log-with",
        "TRACKER",
        "Copy metrics and images to tensorboard, wandb, trackio, mlflow or all, in RUN/logs; repeatable.",
        False,
        c.complete_words("runtime", "log_with"),
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="End with one machine-readable line on stdout.", rich_help_panel=OUTPUT),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and warnings only.", rich_help_panel=OUTPUT)
]


def announce(what: str, *, quiet: bool, as_json: bool) -> None:
    """Say at once what is loaded, before the libraries are imported that take seconds themselves."""
    # Of several processes of a job, one speaks.
    if not quiet and not as_json and os.environ.get("RANK", "0") == "0":
        say(f"loading {to_line(what)} …")
        sys.stdout.flush()


def resolve_run(
    root: Path | None,
    *,
    tasks: list[str],
    config_file: Path | None,
    assignments: list[str],
    start: str | None,
    flags: dict[str, Any],
    loads_model: bool = True,
) -> tuple[Path, Config]:
    """Find the run directory and the configuration that a command line asks for.

    With neither task nor file, an existing run's own configuration is the base of the other options. `loads_model`:
    whether this command loads the model here; else it may be one that cannot be reached from here.
    """
    from rlcm_cli.config import override_config, resolve_settings
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.toml_files import has_byte_order_mark

    if start is not None:
        flags = {**flags, **_adapter_flags(start)}
    if root is not None and not tasks and config_file is None and (root / "config.json").exists():
        return root, override_config(open_run(root).config, assignments=assignments, flags=flags)
    if root is not None and not tasks and config_file is None:
        raise ConfigError(
            f"{root}: there is no run, and no task given to start one; use --task NAME (`rlcm tasks` lists them)"
        )
    config, told = resolve_settings(
        tasks,
        config_file=config_file,
        assignments=assignments,
        flags=flags,
        recommend=ask_model if loads_model else ask_model_if_here,
    )
    for line in told:
        say(f"note: {line}", err=True)
    if config_file is not None and config_file.suffix != ".toml":
        from rlcm_cli.cli.consent import named_texts
        from rlcm_cli.runs.inputs import refuse_unnamed

        refuse_unnamed(config, named_texts(assignments, list(flags.values())), f"--config {config_file}")
    if config_file is not None and config_file.is_file() and has_byte_order_mark(config_file):
        say(f"note: {config_file} begins with a byte order mark, which other readers of TOML refuse", err=True)
    return root or Path("runs") / config.task, config


def ask_model(model: ModelSettings) -> Recommendation:
    """Ask a model how it is drawn by nature, reading only its configurations. Raises `ModelError`."""
    from rlcm_cli.models.parts import recommend

    return recommend(model.name, revision=model.pinned_revision, distilled_lora=model.distilled_lora)


def ask_model_if_here(model: ModelSettings) -> Recommendation | None:
    """Ask a model as `ask_model`; return None, and say so, where it cannot be reached or used."""
    from rlcm_cli.errors import ModelError

    try:
        return ask_model(model)
    except ModelError as error:
        say(f"note: the sampler stays that of the preset, since the model could not be asked: {error}", err=True)
        return None


def settle_sources(
    run: Run, *, tasks: list[str], config_file: Path | None, assignments: list[str], prompts: str | None
) -> None:
    """Compare what a user names as a source with what the run began with. Raises as `settle_inputs`."""
    from rlcm_cli.cli.consent import named_texts
    from rlcm_cli.runs.inputs import prompt_sources, settle_inputs

    named = named_texts(assignments, prompts)
    if tasks or config_file is not None:
        named |= {*prompt_sources(run.config), *filter(None, [run.config.pretraining.source])}
    settle_inputs(run.layout, run.config, named)


def reopen_run(root: Path, *, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Run:
    """Open a run that is there, with some of the settings changed that may change; None means "not given"."""
    from rlcm_cli.config import override_config
    from rlcm_cli.runs.run import create_run, open_run

    return create_run(root, override_config(open_run(root).config, assignments=assignments, flags=flags))


def print_config(config: Config, *, as_json: bool) -> None:
    """Print a configuration, as TOML or as a line of JSON."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.streams import print_data
    from rlcm_cli.config.text import write_config

    if as_json:
        print_json({"config": config.model_dump(mode="json")})
    else:
        print_data(write_config(config))


def parse_rewards(options: Sequence[str]) -> dict[str, float] | None:
    """Read `NAME[=WEIGHT]` options; None where there are none, so that the preset's rewards stay."""
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
            raise ConfigError(f"--reward {name} is given twice; give it once, with the weight that it should have")
        rewards[name] = value
    return rewards or None


def open_cache(unwanted: bool) -> AbstractContextManager[ScoreCache | None]:
    """Open this machine's cache of scores for a `with` block; None where it is not wanted."""
    from rlcm_cli.store.score_cache import ScoreCache, default_cache

    return nullcontext() if unwanted else ScoreCache(default_cache())


def fit_memory(display: Display, *phases: Literal["sample", "train"]) -> Callable[[Run, LatentModel], Run]:
    """Make the function that fits phases into a run's memory budget, where it has one, and tells what it picks."""
    from dataclasses import asdict

    from rlcm_cli.measuring.memory import fit_run

    def fit(run: Run, model: LatentModel) -> Run:
        fitted, found = fit_run(run, model, phases)
        parts = []
        if found.sampling is not None:
            alone = ", decoded one by one" if found.sampling.decode_slicing else ""
            parts.append(f"{found.sampling.batch_size} images at once{alone}: {_bytes(found.sampling.peak_bytes)}")
            display.summary["sampling_fit"] = asdict(found.sampling)
        if found.training is not None:
            again = " with gradient checkpointing" if found.training.gradient_checkpointing else ""
            size = f"micro-batch {found.training.micro_batch_size}{again}"
            parts.append(f"{size}: {_bytes(found.training.peak_bytes)}")
            display.summary["training_fit"] = asdict(found.training)
        if parts:
            display.say(f"memory budget {run.config.runtime.memory_budget}: {'; '.join(parts)}")
        return fitted

    return fit


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


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
