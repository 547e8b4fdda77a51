"""Images from a table: a CSV file with a row an image."""

from __future__ import annotations

import csv
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
from rlcm_cli.phases.drawing import Adapter, Drawing, Shot, check_strength, choose_settings, find_lora, plan_shots
from rlcm_cli.phases.generate import SHEET_COLUMNS, Plan, name_picture
from rlcm_cli.store.pictures import arrange_sheet


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "prompt": str,
    "seed": int,
    "steps": int,
    "scale": _number,
    "guidance": _number,
    "eta": _number,
    "gamma": _number,
    "lora": str,
}
"""Column → what its cells are; an empty cell is as the command's option says."""


SETTINGS = {"steps": "steps", "guidance": "guidance_scale", "eta": "eta", "gamma": "gamma"}
"""Column → setting of `SampleSettings`."""


def plan_table(
    file: Path,
    *,
    seed: int,
    adapter: Adapter | None,
    scale: float,
    model: Mapping[str, Any],
    sample: Mapping[str, Any],
) -> Plan:
    """Plan an image a row; row i has seed + i unless the table says another.

    `adapter`, `scale`, and `model` and `sample` (as in `choose_settings`) are of rows that say nothing else. Rows that
    differ in prompt and seed alone are drawn together. Raises `ConfigError` that names the line.
    """

    @functools.cache
    def settle(place: str | None) -> tuple[Adapter | None, ModelSettings, SampleSettings]:
        lora = adapter if place is None else find_lora(place)
        return lora, *choose_settings(lora, model=model, sample=sample)

    groups: dict[tuple[ModelSettings, SampleSettings, Adapter | None], dict[int, Shot]] = {}
    for number, (line, cells) in enumerate(read_table(file)):
        try:
            (shot,) = plan_shots([cells["prompt"]], count=1, seed=cells.get("seed", seed + number))
            lora, chosen, sampling = settle(cells.get("lora"))
            if lora:
                lora = replace(lora, scale=cells.get("scale", scale))
                check_strength(lora)
            elif "scale" in cells:
                raise ConfigError("scale is about a LoRA, and there is none; name one in a column lora or with --lora")
            asked = {setting: cells.get(name) for name, setting in SETTINGS.items()}
            group = groups.setdefault((chosen, override_section(sampling, asked), lora), {})
        except RlcmError as error:
            raise type(error)(f"{file}:{line}: {error}") from None
        group[number] = shot
    # One LoRA after the other, so that each is loaded once.
    places = [lora and lora.place for _, _, lora in groups]
    ordered = sorted(groups.items(), key=lambda item: places.index(item[0][2] and item[0][2].place))
    drawings = [Drawing(tuple(shots.values()), *settings) for settings, shots in ordered]
    files = [[name_picture(number, shot) for number, shot in shots.items()] for _, shots in ordered]
    numbers = [number for _, shots in ordered for number in shots]

    def arrange(images: Sequence[Sequence[Tensor]]) -> Image.Image:
        drawn = itertools.chain.from_iterable(images)
        of_row = sorted(zip(numbers, drawn, strict=True), key=lambda pair: pair[0])
        return arrange_sheet([image for _, image in of_row], SHEET_COLUMNS)

    return Plan(drawings, files, arrange)


def read_table(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read a table: of each row its line, and the cells that are not empty. Raises `ConfigError`."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(file, reader.fieldnames or [])
            rows = [(reader.line_num, _parse_row(file, reader.line_num, row)) for row in reader]
    except FileNotFoundError:
        raise ConfigError(f"--batch {file}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--batch {file}: not readable as CSV in UTF-8 ({error})") from None
    if not rows:
        raise ConfigError(f"--batch {file}: has no rows; write a line an image below the names of the columns")
    return rows


def _check_columns(file: Path, names: Sequence[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"{file}:1: unknown column '{name}'{hint}; the columns are {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise ConfigError(f"{file}:1: column '{name}' is there twice; leave one out")
    if "prompt" not in names:
        raise ConfigError(f"{file}:1: there is no column 'prompt'; the first line names the columns")


def _parse_row(file: Path, line: int, row: Mapping[str | None, Any]) -> dict[str, Any]:
    if None in row:
        raise ConfigError(f"{file}:{line}: has more cells than there are columns; quote a text that has commas")
    cells: dict[str, Any] = {}
    for name, text in row.items():
        if name is None or not (text or "").strip():
            continue
        try:
            cells[name] = COLUMNS[name](text.strip())
        except ValueError:
            kind = "whole number" if COLUMNS[name] is int else "number"
            raise ConfigError(f"{file}:{line}: {name} '{text.strip()}' is no {kind}") from None
    if "prompt" not in cells:
        raise ConfigError(f"{file}:{line}: has no prompt")
    return cells
