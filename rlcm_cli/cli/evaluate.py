"""`rlcm evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_from, complete_model, complete_reward
from rlcm_cli.cli.evaluate_images import ToDraw, evaluate_drawn, evaluate_stored
from rlcm_cli.cli.evaluate_run import Manner, evaluate_run
from rlcm_cli.cli.generate import MODEL_SETTINGS, parse_numbers
from rlcm_cli.cli.sampler_options import SamplerCommand, chosen_sampler_settings
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce

OF_RUNS = ("runtime.device", "runtime.shard_weights")
DRAWING = "Images of your own prompts"
NAMES = {"name": "model", "image_size": "size", "kind": "sampler"}
"""Setting of a model or a sampler → its option, where that is called otherwise."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "evaluate",
        cls=command_with(*OF_RUNS, *MODEL_SETTINGS, "runtime.offload", base=SamplerCommand),
        epilog="Example: rlcm evaluate --run runs/a --checkpoint 0 --checkpoint best --reward sharpness",
    )(evaluate_command)


def _option(flag: str, metavar: str, text: str, **settings: Any) -> Any:
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=DRAWING, **settings)


def evaluate_command(
    context: typer.Context,
    named: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Run directory, or its URL such as s3://BUCKET/RUN.",
            show_default=False,
            callback=o.refuse_file,
            autocompletion=o.c.complete_run,
        ),
    ] = None,
    checkpoints: Annotated[
        list[str],
        typer.Option(
            "--checkpoint",
            metavar="N|best",
            help="Checkpoint to evaluate: a number, last, best, or best:REWARD; repeatable.",
            show_default="the newest; with --reward all that were evaluated",
        ),
    ] = [],
    rewards: Annotated[
        list[str],
        typer.Option(
            "--reward",
            metavar="NAME",
            help="Score the images with this reward, whatever a run trains for; repeatable.",
            show_default="of held-out images the run's own",
            autocompletion=complete_reward,
        ),
    ] = [],
    prompts: Annotated[
        str | None,
        _option(
            "--prompts",
            "SOURCE",
            "Draw these: a file, a built-in or named set, a dataset; `help` lists the sets.",
            show_default=False,
        ),
    ] = None,
    most: Annotated[
        int | None, _option("--most-prompts", "N", "Only the first N prompts.", min=1, show_default="all")
    ] = None,
    model: Annotated[
        str | None,
        _option(
            "--model",
            "NAME",
            "Embedded name, folder or hub id.",
            show_default="the LoRA's, or emoji-lcm",
            autocompletion=complete_model,
        ),
    ] = None,
    loras: Annotated[
        list[str],
        _option("--lora", "PATH", "A run, a checkpoint, a LoRA file or a hub id; repeatable.", show_default=False),
    ] = [],
    no_base: Annotated[bool, typer.Option("--no-base", help="Not also without the LoRA.", rich_help_panel=DRAWING)] = (
        False
    ),
    count: Annotated[int, _option("--images-per-prompt", "N", "Images of each prompt.", min=1)] = 1,
    steps: Annotated[
        list[str],
        _option("--steps", "H[,H]", "Model calls per image; several are compared.", show_default="the LoRA's"),
    ] = [],
    guidance: Annotated[
        list[str],
        _option("--guidance", "X[,X]", "Guidance scale; several are compared.", show_default="the LoRA's"),
    ] = [],
    sampler: Annotated[
        str | None,
        _option(
            "--sampler",
            "KIND",
            f"How images are sampled: {', '.join(o.SAMPLER_KINDS)}.",
            show_default="the LoRA's, or the model's",
            autocompletion=complete_from(o.SAMPLER_KINDS),
        ),
    ] = None,
    seed: Annotated[int, _option("--seed", "N", "Seed of the first image; each later one adds 1.", min=0)] = 0,
    out: Annotated[
        Path | None,
        _option("--out", "DIR", "Folder; what is there stays.", show_default="evaluations/NAME", file_okay=False),
    ] = None,
    images: Annotated[
        Path | None,
        _option(
            "--images", "DIR", "Score the images of this folder, without a model.", show_default=False, file_okay=False
        ),
    ] = None,
    assignments: o.SetOfRunOption = [],
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],
    allow_changed: o.AllowChangedOption = False,
    no_cache: o.NoCacheOption = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Judge a run's held-out images, or any model's images of prompts that you choose, by any rewards.

    A run's held-out images are drawn where they are missing; with --reward, stored ones are only scored, which needs
    no model. With --prompts, images are drawn into a folder, without and with each LoRA, from the same seeds.
    """
    settings = chosen_settings(context)
    manner = Manner(assignments, settings, allow_code, allow_hosts, allow_changed, not no_cache, quiet, as_json)
    samplers = {"kind": sampler, **chosen_sampler_settings(context)}
    models = {
        "name": model,
        **{key.removeprefix("model."): value for key, value in settings.items() if key in MODEL_SETTINGS},
    }
    drawing: dict[str, Any] = {
        "--most-prompts": most,
        "--lora": loras,
        "--no-base": no_base,
        "--images-per-prompt": count if count > 1 else None,
        "--steps": steps,
        "--guidance": guidance,
        "--seed": seed or None,
        "--out": out,
        **{f"--{NAMES.get(key, key.replace('_', '-'))}": value for key, value in [*models.items(), *samplers.items()]},
        "--offload": settings["runtime.offload"],
    }
    if prompts == "help":
        show_sets()
        return
    if images is not None:
        refuse_beside("--images", {"--run": named, "--checkpoint": checkpoints, "--prompts": prompts, **drawing})
        announce(f"the rewards of {images}", quiet=quiet, as_json=as_json)
        evaluate_stored(images, rewards, manner)
        return
    if prompts is None:
        refuse_without_prompts(named, drawing)
        announce(f"the rewards of {named}" if rewards else str(named), quiet=quiet, as_json=as_json)
        run_settings = {key: settings[key] for key in OF_RUNS}
        own = Manner(assignments, run_settings, allow_code, allow_hosts, allow_changed, not no_cache, quiet, as_json)
        evaluate_run(str(named), checkpoints, rewards, own)
        return
    refuse_with_prompts(named, checkpoints, shard_weights=settings["runtime.shard_weights"])
    announce(named or next(iter(loras), None) or model or "the model", quiet=quiet, as_json=as_json)
    evaluate_drawn(
        ToDraw(
            prompts,
            most,
            loras,
            named,
            checkpoints,
            base=not no_base,
            steps=[number for text in steps for number in parse_numbers("--steps", text, int)],
            guidance=[number for text in guidance for number in parse_numbers("--guidance", text, float)],
            count=count,
            seed=seed,
            model=models,
            sampler=samplers,
            out=out,
        ),
        rewards,
        manner,
    )


def refuse_beside(flag: str, others: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the first of some options that was given next to one that it does not go with."""
    from rlcm_cli.errors import ConfigError

    for other, value in others.items():
        if value:
            raise ConfigError(f"{other} with {flag}, which only scores what is stored; leave it out")


def refuse_without_prompts(named: str | None, drawing: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where there is neither a run nor prompts, or an option that only goes with prompts."""
    from rlcm_cli.errors import ConfigError

    for flag, value in drawing.items():
        if value:
            held_out = ", since a run's held-out images are always drawn alike" if named else ""
            raise ConfigError(f"{flag} goes with --prompts{held_out}; add --prompts SOURCE, or leave it out")
    if named is None:
        raise ConfigError(
            "nothing to evaluate; name a run with --run DIR, prompts to draw with --prompts SOURCE, or a folder of "
            "images with --images DIR"
        )


def refuse_with_prompts(named: str | None, checkpoints: Sequence[str], *, shard_weights: bool | None) -> None:
    """Raise `ConfigError` for options that do not go with prompts of one's own."""
    from rlcm_cli.errors import ConfigError

    if checkpoints and named is None:
        raise ConfigError(f"--checkpoint {checkpoints[0]} is of a run, and there is none; name one with --run")
    if shard_weights:
        raise ConfigError(
            "--shard-weights with --prompts, which draws in one process; leave it out, or add --offload if memory is "
            "short"
        )


def show_sets() -> None:
    """List the prompt sets that have a name."""
    from rlcm_cli.cli.tables import print_rows
    from rlcm_cli.cli.terminal import open_console
    from rlcm_cli.prompts import PROMPT_SETS
    from rlcm_cli.prompts.named_sets import NAMED_SETS

    rows = [(name, "built in", "part of this package") for name in PROMPT_SETS]
    for name, found in NAMED_SETS.items():
        rows.append((name, "on the hub" if found.repository else f"as {name}:PATH", found.describe()))
    print_rows(open_console(highlight=False), rows)
