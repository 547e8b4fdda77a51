"""`rlcm generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlcm_cli.cli import options as o


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("generate", epilog="Example: rlcm generate --lora runs/compression --prompt 'a cat' --steps 2")(run)


def run(
    prompts: Annotated[list[str], typer.Option("--prompt", help="What to draw; repeatable.", show_default=False)] = [],  # noqa: B006
    prompts_from: Annotated[
        str | None,
        typer.Option("--prompts", help="Prompts from a file, a built-in set or a dataset.", show_default=False),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option("--lora", help="A run, a checkpoint, a LoRA file or a hub id.", show_default=False),
    ] = None,
    lora_scale: Annotated[float, typer.Option("--lora-scale", help="Strength of the LoRA.")] = 1.0,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Embedded name, folder or hub id.", show_default="the LoRA's, or emoji-lcm"),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", help="lcm, ddim or tcd.", show_default="the LoRA's, or as the model says"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", help="Model calls an image, 1 or more.", show_default="the LoRA's, or 4, of ddim 50 or 20"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="Guidance scale, as in diffusers.", show_default="the LoRA's, or the model's"),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option("--eta", help="Of ddim: how much noise each step draws.", show_default="the LoRA's, or 0"),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", help="Of tcd: stochasticity, 0 to 1.", show_default="the LoRA's, or 0.3"),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Images a prompt.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Image i has this seed + i.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for the images.", file_okay=False)] = Path("outputs"),
    dtype: o.DtypeOption = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Draw images: a PNG each that says how it was made, and a contact sheet."""
    from rlcm_cli.cli.display import Display
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.phases.generate import find_lora, generate, load_drawing_model, plan_drawing
    from rlcm_cli.prompts import load_prompts

    wanted = [*prompts, *(load_prompts(prompts_from) if prompts_from else ())]
    if not all(prompt.strip() for prompt in wanted) or not wanted:
        raise ConfigError("no prompt given; use --prompt TEXT (repeatable) or --prompts FILE")
    drawing = plan_drawing(
        wanted,
        count=count,
        seed=seed,
        adapter=find_lora(lora, lora_scale) if lora else None,
        model={"name": model, "dtype": dtype, "policy": policy},
        sample={"steps": steps, "guidance_scale": guidance, "eta": eta, "gamma": gamma},
    )
    display = Display(quiet=quiet, as_json=as_json)
    display.follow(generate(drawing, load_drawing_model(drawing, device), out))
    display.finish({"out": str(out), "images": len(wanted) * count})
