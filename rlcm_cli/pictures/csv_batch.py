"""Images from a table: a CSV file with a row an image."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from rlcm_cli.config import ModelSettings, SampleSettings, override_section
from rlcm_cli.errors import ConfigError, RlcmError
from rlcm_cli.pictures.contact_sheet import arrange_sheet
from rlcm_cli.pictures.drawing import (
    Adapter,
    Drawing,
    ImageSpec,
    check_strength,
    choose_settings,
    find_lora,
    plan_images,
)
from rlcm_cli.pictures.generate import SHEET_COLUMNS, Plan, name_picture
from rlcm_cli.prompts.tables import read_csv
from rlcm_cli.prompts.text import read_text
from rlcm_cli.samplers import SAMPLERS, SamplerSettings, read_setting


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


SAMPLER_COLUMNS = list(dict.fromkeys(name for sampler in SAMPLERS.values() for name in sampler.setting_names))

COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "prompt": str,
    "seed": int,
    "steps": int,
    "scale": _number,
    "guidance": _number,
    "lora": str,
    **dict.fromkeys(SAMPLER_COLUMNS, read_setting),
}
"""Column → what its cells are; an empty cell is as the command's option says."""


SETTINGS = {"steps": "steps", "guidance": "guidance_scale"}
"""Column → setting of `SampleSettings`."""


def plan_table(
    file: Path,
    *,
    seed: int,
    adapter: Adapter | None,
    scale: float,
    model: Mapping[str, Any],
    sample: Mapping[str, Any],
    sampler: Mapping[str, Any],
) -> Plan:
    """Plan an image a row; row i has seed + i unless the table says another.

    `adapter`, `scale`, and `model`, `sample` and `sampler` (as in `choose_settings`) are of rows that say nothing
    else. Rows that differ only in prompt and seed are drawn together. Raises `ConfigError` that names the line.
    """

    @functools.cache
    def settle(place: str | None) -> tuple[Adapter | None, ModelSettings, SampleSettings, SamplerSettings]:
        lora = adapter if place is None else find_lora(place)
        return lora, *choose_settings(lora, model=model, sample=sample, sampler=sampler)

    groups: dict[tuple[ModelSettings, SampleSettings, SamplerSettings, Adapter | None], dict[int, ImageSpec]] = {}
    for number, (place, cells) in enumerate(read_rows(file)):
        try:
            (spec,) = plan_images([cells["prompt"]], count=1, seed=cells.get("seed", seed + number))
            lora, chosen, sampling, of_sampler = settle(cells.get("lora"))
            if lora:
                lora = replace(lora, scale=cells.get("scale", scale))
                check_strength(lora)
            elif "scale" in cells:
                raise ConfigError("scale is about a LoRA, and there is none; name one in a column lora or with --lora")
            asked = {setting: cells.get(name) for name, setting in SETTINGS.items()}
            own = override_section(of_sampler, {name: cells.get(name) for name in SAMPLER_COLUMNS})
            group = groups.setdefault((chosen, override_section(sampling, asked), own, lora), {})
        except RlcmError as error:
            raise type(error)(f"{file}, {place}: {error}") from None
        group[number] = spec
    # One LoRA after the other, so that each is loaded once.
    places = [lora and lora.place for *_, lora in groups]
    ordered = sorted(groups.items(), key=lambda item: places.index(item[0][-1] and item[0][-1].place))
    drawings = [Drawing(tuple(specs.values()), *settings) for settings, specs in ordered]
    files = [[name_picture(number, spec) for number, spec in specs.items()] for _, specs in ordered]
    numbers = [number for _, specs in ordered for number in specs]

    def arrange(images: Sequence[Sequence[Tensor]]) -> Image.Image:
        drawn = itertools.chain.from_iterable(images)
        of_row = sorted(zip(numbers, drawn, strict=True), key=lambda pair: pair[0])
        return arrange_sheet([image for _, image in of_row], SHEET_COLUMNS)

    return Plan(drawings, files, arrange)


def read_rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a table: of each row where it stands, and the cells that are not empty. Raises `ConfigError`."""
    table = read_csv(read_text(file, "--batch"), f"--batch {file}")
    _check_columns(file, table.columns)
    rows = [(place, _parse_row(file, place, row)) for place, row in table.rows]
    if not rows:
        raise ConfigError(f"--batch {file}: has no rows; write a line an image below the names of the columns")
    return rows


def _check_columns(file: Path, names: Sequence[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"{file}, line 1: unknown column '{name}'{hint}; the columns are {', '.join(COLUMNS)}")
    if "prompt" not in names:
        raise ConfigError(f"{file}, line 1: there is no column 'prompt'; the first line names the columns")


def _parse_row(file: Path, place: str, row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, text in row.items():
        if name not in COLUMNS or not (text or "").strip():  # a column without a name: pandas' row numbers, say
            continue
        try:
            cells[name] = COLUMNS[name](text.strip())
        except ValueError:
            kind = "whole number" if COLUMNS[name] is int else "number"
            raise ConfigError(f"{file}, {place}: {name} '{text.strip()}' is not a {kind}") from None
    if "prompt" not in cells:
        raise ConfigError(f"{file}, {place}: has no prompt; fill in its column 'prompt'")
    return cells
