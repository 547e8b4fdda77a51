"""Drawing the images of an evaluation that are not there yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rlcm_cli.errors import ConfigError
from rlcm_cli.events import Advanced, Event, PhaseStarted
from rlcm_cli.judging.folder import RESULTS, Results, check_folder, read_results, write_results
from rlcm_cli.judging.ways import Way
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.sample import REDUCTION, draw_batch, tell_cut_prompts, tell_few_steps
from rlcm_cli.pictures.contact_sheet import to_picture, write_png
from rlcm_cli.pictures.drawing import ModelCache, show_name
from rlcm_cli.pictures.png_metadata import describe, list_settings
from rlcm_cli.pictures.png_texts import read_png_texts
from rlcm_cli.runs.schedules import drawing_schedule


def draw_ways(ways: Sequence[Way], folder: Path, device: str, *, offload: bool = False) -> Iterator[Event]:
    """Draw the images that a folder lacks, and note them all in its results; a model is loaded only where one is.

    The batches are those of an undisturbed drawing, so that the bytes are, too. Raises `ConfigError` where an image
    is there that was drawn in another way.
    """
    check_folder(folder)
    missing = [[number for number, file in enumerate(way.files) if not (folder / file).exists()] for way in ways]
    for way, absent in zip(ways, missing, strict=True):
        _check_stored(way, folder, set(absent))
    _note(ways, folder)
    models = ModelCache(device, offload=offload)
    todo = [(way, absent) for way, absent in zip(ways, missing, strict=True) if absent]
    todo.sort(key=lambda pair: pair[0].drawing.adapter is None)  # a LoRA that does not fit is found before the base
    for number, (way, absent) in enumerate(todo):
        model = models.set_up(way.drawing)
        name = show_name(way.drawing.model.name)
        if number == 0:
            yield from tell_cut_prompts(model, way.drawing.prompts)
            yield from tell_few_steps(model, name, max(one.drawing.sample.steps for one, _ in todo))
            yield PhaseStarted("evaluate", 0, sum(len(own) for _, own in todo), "images")
        _check_model(way, folder, model, set(absent))
        yield from _draw(way, model, folder, set(absent))


def _draw(way: Way, model: LatentModel, folder: Path, absent: set[int]) -> Iterator[Event]:
    drawing = way.drawing
    schedule = drawing_schedule(drawing.sampler, drawing.sample.steps, model)
    for first in range(0, len(drawing.specs), drawing.sample.batch_size):
        part = drawing.specs[first : first + drawing.sample.batch_size]
        wanted = [row for row in range(len(part)) if first + row in absent]
        if not wanted:
            continue
        images = draw_batch(
            model,
            schedule,
            [spec.prompt for spec in part],
            [spec.seed for spec in part],
            guidance_scale=drawing.sample.guidance_scale,
            reduction=REDUCTION,
        ).images
        for row in wanted:
            info = describe(drawing, model, part[row], (row, len(part)))
            write_png(folder / way.files[first + row], to_picture(images[row]), info)
        yield Advanced(len(wanted))


def _check_stored(way: Way, folder: Path, absent: set[int]) -> None:
    """Raise `ConfigError` where an image that is there was drawn with other settings."""
    for number, (file, spec) in enumerate(zip(way.files, way.drawing.specs, strict=True)):
        if number in absent:
            continue
        texts = read_png_texts(folder / file)
        for key, value in list_settings(way.drawing, spec).items():
            if texts.get(key) != value:
                raise ConfigError(
                    f"{folder / file}: was drawn in another way ({key} {texts.get(key, 'not known')} → {value}); "
                    "choose another folder with --out"
                )


def _check_model(way: Way, folder: Path, model: LatentModel, absent: set[int]) -> None:
    there = next((file for number, file in enumerate(way.files) if number not in absent), None)
    if there and read_png_texts(folder / there).get("model_digest") != model.digest:
        raise ConfigError(
            f"{folder / there}: was drawn with other files of the model {show_name(way.drawing.model.name)} than are "
            "loaded now; choose another folder with --out"
        )


def _note(ways: Sequence[Way], folder: Path) -> None:
    """Put the rows of the images into the results, before those are drawn; rewards that are there stay."""
    known = read_results(folder) if (folder / RESULTS).is_file() else Results([])
    rows = {row["file"]: row for row in known.rows}
    planned = {row["file"]: row for way in ways for row in way.rows()}
    both = {file: {**rows.get(file, {}), **planned.get(file, {})} for file in {**rows, **planned}}
    if list(both.values()) != known.rows:
        write_results(folder, Results(list(both.values()), known.rewards))
