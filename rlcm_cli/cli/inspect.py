"""`rlcm inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.streams import say
from rlcm_cli.store.remote.objects import is_url
from rlcm_cli.wording import count, format_size

NEWEST_SHOWN = 5
OWN_KEYS = ("kind", "size", "bytes", "faults")
"""Keys of a description that have a meaning here, which a picture's text of the same name must not take."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect", epilog="Example: rlcm inspect runs/compression --verify")(inspect_command)


def inspect_command(
    named: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A run, a checkpoint, a shard, a LoRA file or a PNG.", show_default=False),
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check every file of a run; exits with 4 if one is damaged, missing or from another run.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Write a rollout's images as PNG files, with a table of prompts, seeds and rewards.",
            show_default=False,
            file_okay=False,
        ),
    ] = None,
    iteration: Annotated[
        int | None,
        typer.Option(
            "--rollout",
            metavar="N",
            help="Number of the rollout whose images to write (its folder's name).",
            show_default="the newest",
        ),
    ] = None,
    as_json: o.JsonOption = False,
) -> None:
    """Describe the contents of a run or of one of its files."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.tables import print_rows
    from rlcm_cli.cli.terminal import open_console
    from rlcm_cli.errors import ConfigError, StoreError
    from rlcm_cli.runs.staging import stage_inspection
    from rlcm_cli.store.inspection import describe_path
    from rlcm_cli.store.layout import RunLayout
    from rlcm_cli.store.remote.remote_run import split_url
    from rlcm_cli.store.verification import verify_run
    from rlcm_cli.wording import to_line

    shown = None if images is None else [] if iteration is None else [iteration]
    run_named, inside = split_url(named) if is_url(named) else (named, "")
    fetch = partial(stage_inspection, path=inside, whole=verify, images_of=shown)
    with open_location(run_named, fetch) as location:
        path = location.existing / inside
        if images is not None:
            _export(path, images, iteration, as_json=as_json)
            return
        if verify and not RunLayout(path).config.exists():
            raise ConfigError(f"{path}: --verify needs a run directory; other files are checked when they are read")
        faults = verify_run(RunLayout(path)) if verify else []
        try:
            described = _describe_picture(path) if _is_picture(path) else describe_path(path)
        except StoreError:
            if not faults:  # which say this and more
                raise
            described = {"kind": "run"}
        if verify:
            described["faults"] = [location.describe(fault) for fault in faults]
        if as_json:
            print_json(described)
        else:
            shown_values = {key: value for key, value in described.items() if key != "faults"}
            print_rows(open_console(markup=False, highlight=False), list(_rows(shown_values)))
            for fault in described.get("faults", []):  # whole lines, so that remedies can be copied
                say(f"fault: {to_line(fault)}")
            if verify and not described["faults"]:
                say("no faults: every file is there, and all checksums match")
        if described.get("faults"):
            raise typer.Exit(StoreError.exit_code)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png" and path.is_file()


def _describe_picture(path: Path) -> dict[str, Any]:
    """Describe a PNG by its text chunks; those of `rlcm generate` say how it was made."""
    from PIL import Image

    from rlcm_cli.pictures.png_texts import read_png_texts
    from rlcm_cli.store.inspection import INSPECTED

    texts = read_png_texts(path, remedy=f"name {INSPECTED} of any program")
    named = {f"text {key}" if key in OWN_KEYS else key: text for key, text in texts.items()}
    with Image.open(path) as picture:
        size = f"{picture.width} × {picture.height} pixels"
    return {"kind": "picture", "size": size, **(named or {"metadata": "none: it does not say how it was made"})}


def _export(path: Path, folder: Path, iteration: int | None, *, as_json: bool) -> None:
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.errors import MissingFileError
    from rlcm_cli.report.run.images import export_images
    from rlcm_cli.store.layout import RunLayout

    layout = RunLayout(path)
    if not layout.iterations():
        raise MissingFileError(f"{path}: has no rollout with images; --images needs a run directory")
    newest = layout.iterations()[-1]
    *pictures, table = export_images(layout, folder, newest if iteration is None else iteration)
    if as_json:
        print_json({"out": str(folder), "files": [str(file) for file in (*pictures, table)]})
    else:
        images = count(len(pictures), "image")
        say(f"{folder}: {images}; prompts, seeds and rewards are in {table.name}")


def _rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the rows of a table: one row per entry of inner tables and lists, only the newest of many iterations."""
    for key, value in values.items():
        match value:
            case _ if key == "bytes":
                yield "size", format_size(value)
            case dict() if key == "rollouts":
                shown = list(value)[-NEWEST_SHOWN:]
                if len(shown) < len(value):
                    yield "rollouts", f"{len(value) - len(shown)} older ones, and"
                for iteration in shown:
                    yield f"rollout {iteration}", _rollout(value[iteration])
            case dict():
                yield from ((f"{key} {name}", _plain(item)) for name, item in value.items())
            case _:
                yield key, _plain(value)


def _rollout(states: Mapping[str, Any]) -> str:
    scored = ", ".join(f"{name} {count}" for name, count in states["rewards"].items()) or "nothing"
    return f"shards sampled {states['sampled']}, scored: {scored}"


def _plain(value: Any) -> str:
    match value:
        case None:
            return "none yet"
        case float():
            return f"{value:.4f}"
        case [int(), *_] if len(value) == value[-1] - value[0] + 1 and sorted(value) == value:
            return f"{value[0]} to {value[-1]}" if len(value) > 1 else str(value[0])
        case list() | tuple():
            return ", ".join(map(str, value)) or "none"
        case dict():
            return json.dumps(value, ensure_ascii=False)
    return str(value)
