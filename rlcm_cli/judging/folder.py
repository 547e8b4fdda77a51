"""An evaluation outside a run: images, a row for each, and their summary.

DIR/<way>/00000-<prompt>-<seed>.png   images; each says how it was drawn
DIR/results.jsonl                     a row an image: file, prompt, seed, way, settings, `reward.NAME` for each reward
DIR/summary.json                      means, standard errors and win rates, and which version of each reward gave them
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from rlcm_cli.errors import ConfigError, CorruptFileError, MissingFileError
from rlcm_cli.judging.summary import Judgement, judge_ways, to_json
from rlcm_cli.pictures.png_texts import read_png_texts
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.wording import command, to_json_values

RESULTS, SUMMARY = "results.jsonl", "summary.json"
REWARD = "reward."
FORMAT_VERSION = 1
TEXTS = ("file", "prompt", "way")
Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What is known of the images of a folder."""

    rows: list[Row]
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Reward → what gave its values: settings, digest and revision."""


def read_results(folder: Path) -> Results:
    """Read the rows of a folder; where it has none, make them of its PNGs that say what they were drawn from.

    Raises `MissingFileError` where there are no images, `CorruptFileError` for a row that cannot be.
    """
    if not (folder / RESULTS).is_file():
        return Results(_read_pictures(folder))
    rows = []
    lines = _read(folder / RESULTS).split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_check_row(_parse(line, f"{folder / RESULTS}, line {number}"), folder, number))
    rewards = {}
    if (folder / SUMMARY).is_file():
        summary = _parse(_read(folder / SUMMARY), str(folder / SUMMARY))
        if summary.get("format_version", 0) > FORMAT_VERSION:
            raise CorruptFileError(f"{folder / SUMMARY}: was written by a later version of rlcm; update rlcm")
        rewards = summary.get("rewards", {})
    return Results(rows, rewards if isinstance(rewards, dict) else {})


def write_results(folder: Path, results: Results) -> list[Judgement]:
    """Write the rows of a folder and their summary, which is returned."""
    lines = [json.dumps(to_json_values(row), ensure_ascii=False) for row in results.rows]
    replace_bytes(folder / RESULTS, "".join(f"{line}\n" for line in lines).encode())
    judgements = summarise(results.rows)
    values = {
        "format_version": FORMAT_VERSION,
        "rewards": results.rewards,
        "judged": [to_json(found) for found in judgements],
    }
    # The last: values whose origin it does not name are not trusted.
    replace_bytes(folder / SUMMARY, (json.dumps(to_json_values(values), ensure_ascii=False, indent=1) + "\n").encode())
    return judgements


def summarise(rows: Sequence[Row]) -> list[Judgement]:
    """Compare the ways of some rows: a LoRA with the base at the same steps and guidance, others with the first."""
    images = list(dict.fromkeys((row["prompt"], row.get("seed")) for row in rows))
    place = {image: number for number, image in enumerate(images)}
    ways: dict[str, dict[str, list[float]]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["way"], row)
        values = ways.setdefault(row["way"], {})
        for key, value in row.items():
            if key.startswith(REWARD) and value is not None:
                own = values.setdefault(key.removeprefix(REWARD), [math.nan] * len(images))
                own[place[row["prompt"], row.get("seed")]] = float(value)
    return judge_ways(ways, [prompt for prompt, _ in images], _pair(first))


def _pair(ways: Mapping[str, Row]) -> dict[str, str]:
    """Return way → the way that it is compared with."""
    base = {(row.get("steps"), row.get("guidance_scale")): way for way, row in ways.items() if row.get("lora") is None}
    start = next(iter(ways), "")
    return {
        way: base.get((row.get("steps"), row.get("guidance_scale")), start) if row.get("lora") is not None else start
        for way, row in ways.items()
    }


def read_image(folder: Path, row: Row) -> np.ndarray:
    """Read the image of a row, uint8 [3, H, W]. Raises `MissingFileError` or `CorruptFileError`."""
    path = folder / row["file"]
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: is not there; draw it again, or take its row out of {RESULTS}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise CorruptFileError(f"{path}: is damaged or not a PNG; remove it and draw it again") from None


def _read_pictures(folder: Path) -> list[Row]:
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder}: there is no such folder; name one with images, as --out of this command had"
        )
    rows = []
    for path in sorted(folder.rglob("*.png")):
        texts = read_png_texts(path)
        if not texts.get("prompt", "").strip():
            continue
        inside = path.relative_to(folder)
        seed = texts.get("seed", "")
        settings = {key: _number(texts.get(key)) for key in ("steps", "guidance_scale")}
        lora = texts.get("lora")
        way = f"{lora or 'base'}" + "".join(
            f", {key.removesuffix('_scale')} {v:g}" for key, v in settings.items() if v
        )
        rows.append(
            {
                "file": inside.as_posix(),
                "prompt": texts["prompt"],
                "seed": int(seed) if seed.isascii() and seed.isdecimal() else None,
                "way": way,
                "model": texts.get("model"),
                "lora": lora,
                **settings,
                "sampler": texts.get("sampler"),
            }
        )
    if not rows:
        raise MissingFileError(
            f"{folder}: holds neither {RESULTS} nor a PNG that says which prompt it was drawn from; draw images with "
            f"`{command('evaluate', '--model', 'NAME', '--prompts', 'SET', '--out', folder)}`"
        )
    return rows


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_row(row: Row, folder: Path, number: int) -> Row:
    place = f"{folder / RESULTS}, line {number}"
    for key in TEXTS:
        if not isinstance(row.get(key), str) or not row[key]:
            raise CorruptFileError(f"{place}: has no text under '{key}'; write it, or take the row out")
    path = PurePosixPath(row["file"])
    if path.is_absolute() or ".." in path.parts or "\\" in row["file"] or ":" in row["file"]:
        raise CorruptFileError(f"{place}: the file leads out of the folder; put the image into it")
    for key, value in row.items():
        if key.startswith(REWARD) and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            raise CorruptFileError(f"{place}: '{key}' is not a number; correct it, or take it out")
    return row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path}: cannot be read ({error}); put back what was there") from None


def _parse(text: str, place: str) -> Row:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CorruptFileError(f"{place}: is not a JSON object; correct it, or draw into another folder")
    return found


def check_folder(folder: Path) -> None:
    """Raise `ConfigError` for a folder that holds something else than an evaluation."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RESULTS).is_file():
        raise ConfigError(f"--out {folder}: holds something else than an evaluation; choose another folder")
