"""`rlcm export`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.location import open_location
from rlcm_cli.store.remote.objects import is_url

if TYPE_CHECKING:
    from rlcm_cli.events import Event
    from rlcm_cli.pictures.export import Exported
    from rlcm_cli.store.remote.remote_run import RemoteRun


class Format(StrEnum):
    """What is written."""

    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    PIPELINE = "pipeline"


class Dtype(StrEnum):
    """Of the exported weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export", epilog="Example: rlcm export runs/compression --format kohya --out exports/compression")(
        export_command
    )


def export_command(
    named: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, a checkpoint or a LoRA file.", show_default=False)
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            parser=lambda text: read_format(text),  # defined below
            metavar="|".join(Format),
            autocompletion=lambda: list(Format),
            help="diffusers: LoRA with rank and alpha; kohya: for ComfyUI, A1111 and others; pipeline: the whole "
            "model with the training folded in.",
        ),
    ] = Format.DIFFUSERS,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New folder.", show_default="exports/NAME-FORMAT", file_okay=False),
    ] = None,
    average: Annotated[
        bool, typer.Option("--ema", help="The moving average of the weights, where the run keeps one.")
    ] = False,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of the exported weights.")] = Dtype.FLOAT32,
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="OWNER/NAME", help="Also upload it to the hub.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the hub's repository public; else it is private.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing export, here or on the hub.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Base model: folder or hub id.", show_default="the run's"),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Write a checkpoint for other tools, with a model card; checked by drawing with it as they do."""
    o.announce(named, quiet=quiet, as_json=as_json)

    from dataclasses import asdict

    from rlcm_cli.cli.display import Display
    from rlcm_cli.errors import ConfigError, RemoteStoreError
    from rlcm_cli.pictures.export import check_request, export, find_source
    from rlcm_cli.runs.staging import stage_report
    from rlcm_cli.store.remote.model_repository import check_repository, upload_folder
    from rlcm_cli.store.remote.remote_run import split_url

    if public and hub is None:
        raise ConfigError("--public is of --hub OWNER/NAME; add that, or leave it out")
    run_named, inside = split_url(named) if is_url(named) else (named, "")

    def fetch(remote: RemoteRun) -> None:
        stage_report(remote)
        if inside:
            remote.fetch_place(inside)

    display = Display(quiet=quiet, as_json=as_json)
    finished: list[Exported] = []
    with open_location(run_named, fetch) as location:
        source = find_source(str(location.existing / inside), average=average, model={"name": model})
        folder = (
            out
            or Path("exports")
            / f"{name_source(run_named, source.layout.root if source.layout else None)}-{form.value}"
        )
        title = hub.rpartition("/")[2] if hub else folder.resolve().name
        check_request(source, form.value, folder, overwrite=overwrite)
        if hub:
            check_repository(hub, public=public, overwrite=overwrite)
        work = export(
            source, form.value, folder, dtype=dtype.value, device=device, title=title, describe=describe_with(hub)
        )
        display.follow(_keep_result(work, finished.append))
    (exported,) = finished
    if form is Format.KOHYA and exported.comfyui:
        display.say("in ComfyUI: " + ", ".join(f"{name} {value}" for name, value in exported.comfyui.items()))
    address = None
    if hub:
        try:
            address = upload_folder(folder, hub, public=public, message=f"Export of checkpoint {source.checkpoint}")
        except RemoteStoreError as error:
            raise RemoteStoreError(f"{error}; {folder} holds the export, --overwrite makes it again") from error
        display.say(f"{address}: uploaded, {'public' if public else 'private'}")
    display.finish(
        {
            "out": str(folder),
            "format": form.value,
            "weights": exported.weights,
            "checkpoint": source.checkpoint,
            "verification": asdict(exported.verification),
            "hub": address,
        }
    )


def read_format(text: str) -> Format:
    """Read the value of --format; who asks for a tool is told the format that it reads."""
    try:
        return Format(text)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is not one of {', '.join(Format)}; kohya is the one that ComfyUI, A1111 and Forge read"
        ) from None


def name_source(named: str, root: Path | None) -> str:
    """Name an export by its run as it was typed, or, of a checkpoint or a file, by what that lies in."""
    from rlcm_cli.cli.report import last_part

    if is_url(named) or root is None:
        return Path(last_part(named)).stem
    return root.resolve().name


def describe_with(hub: str | None) -> Callable[[Exported, Path], None]:
    """Make the function that writes the model card of an export."""
    from rlcm_cli.cli.report import open_reported
    from rlcm_cli.models.embedded import embedded_folder
    from rlcm_cli.report.run.card import CardSubject, read_evidence, write_card

    def describe(exported: Exported, folder: Path) -> None:
        source, licence = exported.source, exported.licence
        base = source.model.name
        kind = "embedded" if embedded_folder(base) else "folder" if Path(base).exists() else "hub"
        subject = CardSubject(
            title=exported.title,
            format=exported.format,
            weights=exported.weights,
            repository=hub,
            base=Path(base).name if kind == "folder" else base,
            base_is=kind,
            revision=source.model.pinned_revision,
            distilled_lora=source.model.distilled_lora,
            licence=licence.identifier if licence else None,
            licence_name=licence.name if licence else None,
            licence_link=licence.link if licence else None,
            pipeline=exported.pipeline,
            arguments=exported.arguments,
            prompt=source.prompts[0],
            checkpoint=source.checkpoint,
            average=source.average,
            verification=str(exported.verification),
            guided_by_embedding=exported.guided_by_embedding,
            comfyui=exported.comfyui,
        )
        evidence = None
        if source.layout is not None and source.checkpoint is not None:
            evidence = read_evidence(open_reported(source.layout.root, exported.title), source.checkpoint)
        write_card(subject, evidence, folder)

    return describe


def _keep_result(work: Generator[Event, None, Exported], keep: Callable[[Exported], None]) -> Iterator[Event]:
    keep((yield from work))
