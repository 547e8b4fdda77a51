"""Draw images with a model and, where one is named, a LoRA: PNGs that say how they were made, and a sheet."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rlcm_cli.errors import ConfigError
from rlcm_cli.events import Advanced, Event, FileWritten, PhaseStarted, Warned
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.sample import REDUCTION, draw_batch, tell_cut_prompts, tell_few_steps
from rlcm_cli.pictures.contact_sheet import arrange_sheet, to_picture, write_png
from rlcm_cli.pictures.drawing import Drawing, ImageSpec, ModelCache, show_name
from rlcm_cli.pictures.png_metadata import describe, describe_sheet
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.wording import count, slug

SHEET = "sheet.png"
SHEET_COLUMNS = 8
LEAST_COLUMNS = 4


@dataclass(frozen=True)
class Plan:
    """Drawings, the files of their images, and the sheet that all are laid on."""

    drawings: Sequence[Drawing]
    files: Sequence[Sequence[str]]
    """Name of each image's file, by drawing and spec."""
    arrange: Callable[[Sequence[Sequence[Tensor]]], Image.Image]
    """Makes the sheet of the images, uint8 [3, H, W], by drawing and spec."""
    warnings: Sequence[str] = ()
    model_digest: str | None = None
    """What the model should be, by its digest; None: whatever it is."""
    sources: Sequence[Path] = ()
    """Pictures that must not be written over."""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(drawing.specs) for drawing in self.drawings)

    def written(self, folder: Path) -> list[Path]:
        """Return every file that the plan makes in a folder, the sheet last."""
        return [*(folder / name for files in self.files for name in files), folder / SHEET]


@dataclass(frozen=True)
class Speed:
    """How fast images were drawn; loading models and writing files is not counted."""

    images: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def each(self) -> float:
        """Seconds an image."""
        return self.seconds / self.images

    def __str__(self) -> str:
        return f"{self.rate:.3g} images/s, {self.each:.3g} s an image"


def plan_plainly(drawing: Drawing, count: int) -> Plan:
    """Plan one drawing of `count` images a prompt: its sheet is a contact sheet, row by row."""
    columns = min(SHEET_COLUMNS, max(count, LEAST_COLUMNS))
    names = [name_picture(index, spec) for index, spec in enumerate(drawing.specs)]
    return Plan([drawing], [names], lambda images: arrange_sheet(images[0], columns))


def name_picture(index: int, spec: ImageSpec, tags: Sequence[str] = ()) -> str:
    """Name the file of an image; tags tell it from others of the same prompt and seed."""
    return "-".join([f"{index:05d}", slug(spec.prompt) or "prompt", str(spec.seed), *tags]) + ".png"


def choose_folder(plan: Plan, asked: Path | None, usual: Path, *, overwrite: bool) -> Path:
    """Choose where a plan's files go, so that none is lost: `asked`, or `usual` or the next number of it that is free.

    Raises `ConfigError` where a file is in the way in the folder that is asked for, unless it may be overwritten.
    """
    if overwrite:
        return asked or usual
    if asked is None:
        numbered = (usual.with_name(f"{usual.name}-{number}") for number in itertools.count(2))
        return next(folder for folder in itertools.chain([usual], numbered) if not _in_the_way(plan, folder))
    there = _in_the_way(plan, asked)
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ConfigError(f"{there[0]}{more} already exists; choose another folder with --out, or add --overwrite")
    return asked


def _in_the_way(plan: Plan, folder: Path) -> list[Path]:
    return [file for file in plan.written(folder) if file.exists()]


def generate(drawing: Drawing, model: LatentModel, folder: Path, count: int = 1) -> Generator[Event, None, Speed]:
    """Draw the images of one drawing, with its model as loaded, into a folder: a PNG each, and `sheet.png`."""
    return _generate(plan_plainly(drawing, count), lambda _: model, folder)


def generate_plan(plan: Plan, device: str, folder: Path, *, offload: bool = False) -> Generator[Event, None, Speed]:
    """Draw the images of a plan into a folder: a PNG each, and `sheet.png`. Raises as `load_drawing_model`.

    `offload`: the parts of the model are on the device only while they work.
    """
    return _generate(plan, ModelCache(device, offload=offload).set_up, folder)


def _generate(plan: Plan, set_up: Callable[[Drawing], LatentModel], folder: Path) -> Generator[Event, None, Speed]:
    _spare_sources(plan, folder)
    for warning in plan.warnings:
        yield Warned(warning)
    first = plan.drawings[0]
    model = set_up(first)
    for drawing in plan.drawings:  # what cannot be is found before anything is drawn
        if (drawing.model, drawing.sampler.kind) == (first.model, first.sampler.kind):
            drawing_schedule(drawing.sampler, drawing.sample.steps, model)
    yield from tell_few_steps(model, show_name(first.model.name), max(one.sample.steps for one in plan.drawings))
    if plan.model_digest not in (None, model.digest):
        yield Warned("the model's files are others than those that the picture was drawn with, by their digests")
    yield from tell_cut_prompts(model, (spec.prompt for drawing in plan.drawings for spec in drawing.specs))
    yield PhaseStarted("generate", 0, plan.images, "images")
    seconds = 0.0
    drawn: list[list[Tensor]] = []
    for drawing, files in zip(plan.drawings, plan.files, strict=True):
        model = set_up(drawing)
        drawn.append([])
        started = time.perf_counter()
        for batch in draw_shots(drawing, model):
            seconds += time.perf_counter() - started
            for image, info in batch:
                write_png(folder / files[len(drawn[-1])], to_picture(image), info)
                drawn[-1].append(image)
            yield Advanced(len(batch))
            started = time.perf_counter()
    write_png(folder / SHEET, plan.arrange(drawn), describe_sheet([name for files in plan.files for name in files]))
    speed = Speed(plan.images, seconds)
    yield FileWritten(folder / SHEET, f"contact sheet of {count(plan.images, 'image')} in {folder} ({speed})")
    return speed


def draw_shots(drawing: Drawing, model: LatentModel) -> Iterator[list[tuple[Tensor, PngInfo]]]:
    """Draw the images of a drawing, uint8 [3, H, W], batch by batch, each with what it says of itself."""
    sample = drawing.sample
    schedule = drawing_schedule(drawing.sampler, sample.steps, model)
    for part, rows in _split(drawing):
        images = draw_batch(
            model,
            schedule,
            [spec.prompt for spec in part],
            [spec.seed for spec in part],
            guidance_scale=sample.guidance_scale,
            reduction=REDUCTION,
        ).images
        yield [(images[row], describe(drawing, model, part[row], (row, len(part)))) for row in rows]


def _split(drawing: Drawing) -> Iterator[tuple[Sequence[ImageSpec], Sequence[int]]]:
    """Split into batches: the specs of each, and the rows of it that are wanted."""
    if drawing.place_in_batch:
        row, size = drawing.place_in_batch
        yield drawing.specs * size, [row]
        return
    for first in range(0, len(drawing.specs), drawing.sample.batch_size):
        part = drawing.specs[first : first + drawing.sample.batch_size]
        yield part, range(len(part))


def _spare_sources(plan: Plan, folder: Path) -> None:
    written = {file.resolve() for file in plan.written(folder)}
    for source in plan.sources:
        if source.resolve() in written:
            raise ConfigError(f"{source}: would be written over; choose another folder with --out")
