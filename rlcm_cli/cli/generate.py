"""`rlcm generate`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.checkpoints import CheckpointOption, name_checkpoint
from rlcm_cli.cli.completion import complete_from, complete_model
from rlcm_cli.cli.sampler_options import SamplerCommand, chosen_sampler_settings
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce

NumberT = TypeVar("NumberT", int, float)
OUT = "outputs"
OUT_AGAIN = "outputs/again"
MODEL_SETTINGS = ("model.dtype", "model.quantize", "model.tiled_decoding", "model.image_size")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "generate",
        cls=command_with(*MODEL_SETTINGS, "runtime.offload", base=SamplerCommand),
        epilog="Example: rlcm generate --lora runs/compression --prompt 'a cat' --steps 1,2,4",
    )(generate_command)


def generate_command(
    context: typer.Context,
    prompts: Annotated[
        list[str], typer.Option("--prompt", metavar="TEXT", help="Prompt to generate; repeatable.", show_default=False)
    ] = [],
    prompts_from: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="SOURCE", help="A file, a built-in set or a dataset with prompts.", show_default=False
        ),
    ] = None,
    loras: Annotated[
        list[str],
        typer.Option(
            "--lora",
            metavar="RUN",
            help="A run, a checkpoint, a LoRA file or a hub id; repeatable.",
            show_default=False,
        ),
    ] = [],
    checkpoint: CheckpointOption = None,
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            metavar="X[,X]",
            help="Strength of the LoRA, 0 for none; write several as 0,0.5,1 and a negative one as --scale=-0.5.",
            show_default="1",
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="H[,H]",
            help="Model calls per image, 1 or more; write several as 1,2,4,8.",
            show_default="the LoRA's, or the model's",
        ),
    ] = None,
    compare_base: Annotated[
        bool, typer.Option("--compare-base", help="Also generate without the LoRA, next to it on the sheet.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Embedded name, folder or hub id.",
            show_default="the LoRA's, or emoji-lcm",
            autocompletion=complete_model,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="KIND",
            help=f"How images are sampled: {', '.join(o.SAMPLER_KINDS)}.",
            show_default="the LoRA's, or the model's",
            autocompletion=complete_from(o.SAMPLER_KINDS),
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            metavar="X",
            help="Guidance scale, as in diffusers.",
            show_default="the LoRA's, or the model's",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Images per prompt.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Seed of the first image; each later image adds 1.", show_default="0"
        ),
    ] = None,
    from_image: Annotated[
        Path | None,
        typer.Option(
            "--from-image",
            metavar="FILE.png",
            help="Reproduce a PNG made by this command; other options override its settings.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            "--batch",
            metavar="FILE.csv",
            help="One image per row; columns prompt, seed, steps, scale, guidance, lora, and sampler settings.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the images.",
            file_okay=False,
            show_default=f"{OUT}, or {OUT}-2 and so on if it exists; {OUT_AGAIN} with --from-image",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite existing files.")] = False,
    device: o.DeviceOption = "auto",
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Generate images: one PNG each, which stores its settings, and a contact sheet.

    Up to two of LoRA, scale and steps may have several values: they become the rows and columns of the sheet.
    """
    from rlcm_cli.config import EMBEDDED_MODEL

    announce(model or next(iter(loras), None) or EMBEDDED_MODEL, quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.display import Display
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.pictures.generate import choose_folder, generate_plan
    from rlcm_cli.pictures.generate_request import Request, plan_request
    from rlcm_cli.prompts import load_prompts

    chosen = chosen_settings(context)
    if checkpoint is not None and not loras:
        raise ConfigError(f"--checkpoint {checkpoint} is of a run, and there is none; name one with --lora")
    found = [name_checkpoint(place, checkpoint) for place in loras]
    plan = plan_request(
        Request(
            prompts=[*prompts, *(load_prompts(prompts_from) if prompts_from else ())],
            loras=[place for place, _ in found],
            scales=parse_numbers("--scale", scale, float),
            steps=parse_numbers("--steps", steps, int),
            compare_base=compare_base,
            count=count,
            seed=seed,
            model={
                "name": model,
                **{key.removeprefix("model."): value for key, value in chosen.items() if key in MODEL_SETTINGS},
            },
            sample={"guidance_scale": guidance},
            sampler={"kind": sampler, **chosen_sampler_settings(context)},
            from_image=from_image,
            batch=batch,
        )
    )
    folder = choose_folder(plan, out, Path(OUT_AGAIN if from_image else OUT), overwrite=overwrite)
    display = Display(quiet=quiet, as_json=as_json)
    display.say_all(note for _, notes in found for note in notes)
    speed = display.run(generate_plan(plan, device, folder, offload=bool(chosen["runtime.offload"])))
    display.finish(
        {
            "out": str(folder),
            "files": [str(file) for file in plan.written(folder)],
            "images": speed.images,
            "seconds": speed.seconds,
            "images_per_second": speed.rate,
            "seconds_per_image": speed.each,
        }
    )


def parse_numbers(flag: str, text: str | None, kind: type[NumberT]) -> list[NumberT]:
    """Read numbers with commas between them, each once; none of None. Raises `ConfigError`."""
    from rlcm_cli.errors import ConfigError

    numbers: list[NumberT] = []
    for part in text.split(",") if text is not None else ():
        try:
            number = kind(part)
            if not math.isfinite(number):
                raise ValueError
        except ValueError:
            name, example = ("whole number", "1,2,4") if kind is int else ("number", "0,0.5,1")
            raise ConfigError(
                f"{flag} {text}: '{part}' is not a {name}; write one, or several as {flag} {example}"
            ) from None
        numbers.append(number)
    return list(dict.fromkeys(numbers))
