"""`rlcm export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.checkpoints import CheckpointOption, name_checkpoint
from rlcm_cli.cli.completion import complete_from
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.streams import announce
from rlcm_cli.errors import ConfigError, RemoteStoreError
from rlcm_cli.store.remote.objects import is_url

if TYPE_CHECKING:
    from rlcm_cli.pictures.export import Exported, Format
    from rlcm_cli.store.remote.remote_run import RemoteRun

FORMATS: tuple[Format, ...] = ("diffusers", "kohya", "pipeline")


def read_format(text: str) -> Format:
    """Read the value of --format; a user who names a tool is told which format it reads."""
    for known in FORMATS:
        if text == known:
            return known
    raise typer.BadParameter(
        f"'{text}' is not one of {', '.join(FORMATS)}; kohya is the one that ComfyUI, A1111 and Forge read"
    )


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export", epilog="Example: rlcm export runs/compression --format kohya --out exports/compression")(
        export_command
    )


def export_command(
    named: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A run, a checkpoint or a LoRA file.", show_default=False)
    ],
    checkpoint: CheckpointOption = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            parser=read_format,
            metavar="|".join(FORMATS),
            autocompletion=complete_from(FORMATS),
            help="diffusers: LoRA with rank and alpha; kohya: for ComfyUI, A1111 and others; pipeline: the whole "
            "model with the training folded in.",
        ),
    ] = "diffusers",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="New folder.", show_default="exports/NAME-FORMAT", file_okay=False),
    ] = None,
    average: Annotated[
        bool, typer.Option("--ema", help="Export the moving average of the weights, if the run keeps one.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option("--dtype", help="Data type of the exported weights.")
    ] = "float32",
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="OWNER/NAME", help="Also upload to the Hub.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the Hub repository public instead of private.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite an existing export, locally and on the Hub.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Base model: folder or hub id.", show_default="the run's"),
    ] = None,
    device: o.DeviceOption = "auto",
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Export a checkpoint for other tools, with a model card; verified by generating with diffusers only."""
    announce(named, quiet=quiet, as_json=as_json)

    from dataclasses import asdict

    from rlcm_cli.cli.display import Display
    from rlcm_cli.pictures.export import check_request, export, find_source
    from rlcm_cli.runs.staging import stage_report
    from rlcm_cli.store.remote.model_repository import check_repository
    from rlcm_cli.store.remote.remote_run import split_url

    if public and hub is None:
        raise ConfigError("--public needs --hub OWNER/NAME; add it, or leave out --public")
    place, notes = name_checkpoint(named, checkpoint)
    run_named, inside = split_url(place) if is_url(place) else (place, "")

    def fetch(remote: RemoteRun) -> None:
        stage_report(remote)
        if inside:
            remote.fetch_path(inside)

    display = Display(quiet=quiet, as_json=as_json)
    display.say_all(notes)
    known = read_format(form)
    with open_location(run_named, fetch) as location:
        source = find_source(str(location.existing / inside), average=average, model={"name": model})
        name = name_source(run_named, source.layout.root if source.layout else None)
        folder = out or Path("exports") / f"{name}-{known}"
        title = hub.rpartition("/")[2] if hub else folder.resolve().name
        check_request(source, known, folder, overwrite=overwrite)
        if hub:
            check_repository(hub, public=public, overwrite=overwrite)
        exported = display.run(
            export(source, known, folder, dtype=dtype, device=device, title=title, describe=describe_with(hub))
        )
    if known == "kohya" and exported.comfyui:
        display.say("in ComfyUI: " + ", ".join(f"{name} {value}" for name, value in exported.comfyui.items()))
    address = None
    if hub:
        address = upload(exported, hub, public=public)
        display.say(f"{address}: uploaded, {'public' if public else 'private'}")
    display.finish(
        {
            "out": str(folder),
            "format": known,
            "weights": exported.weights,
            "checkpoint": source.checkpoint,
            "verification": asdict(exported.verification),
            "hub": address,
        }
    )


def upload(exported: Exported, hub: str, *, public: bool) -> str:
    """Upload an export to the Hub and return its address. Raises `RemoteStoreError`."""
    from rlcm_cli.store.remote.model_repository import upload_folder

    folder, checkpoint = exported.folder, exported.source.checkpoint
    try:
        return upload_folder(folder, hub, public=public, message=f"Export of checkpoint {checkpoint}")
    except RemoteStoreError as error:
        raise RemoteStoreError(f"{error}; the export is in {folder}; to try again, add --overwrite") from error


def name_source(named: str, root: Path | None) -> str:
    """Name an export after its run as it was typed or, for a checkpoint or a file, after what contains it."""
    from rlcm_cli.cli.report import last_part

    if is_url(named) or root is None:
        return Path(last_part(named)).stem
    return root.resolve().name


def describe_with(hub: str | None) -> Callable[[Exported, Path], None]:
    """Make the function that writes the model card of an export."""
    from rlcm_cli.models.embedded import embedded_folder
    from rlcm_cli.report.compare.runs import open_compared
    from rlcm_cli.report.run.card import CardSubject, write_card
    from rlcm_cli.report.run.data import read_until

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
            scheduler=exported.call.scheduler,
            scheduler_settings=exported.call.settings,
            arguments=exported.call.arguments,
            prompt=source.prompts[0],
            checkpoint=source.checkpoint,
            average=source.average,
            verification=str(exported.verification),
            guided_by_embedding=exported.guided_by_embedding,
            loads_in_diffusers=exported.loads_in_diffusers,
            absent=exported.absent,
            comfyui=exported.comfyui,
        )
        evidence = None
        if source.layout is not None and source.checkpoint is not None:
            evidence = read_until(open_compared(source.layout.root, exported.title), source.checkpoint)
        write_card(subject, evidence, folder)

    return describe
