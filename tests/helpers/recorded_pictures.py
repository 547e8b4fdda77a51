"""PNGs that say how they were made, without a model that draws them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rlcm_cli.config.settings import ModelSettings, SampleSettings
from rlcm_cli.pictures.contact_sheet import to_picture, write_png
from rlcm_cli.pictures.drawing import Adapter, Drawing, ImageSpec
from rlcm_cli.pictures.png_metadata import describe
from rlcm_cli.samplers import find_sampler

MODEL_DIGEST = "m" * 64


def make_drawing(*prompts: str, adapter: Adapter | None = None, sampler: str = "lcm", **model: Any) -> Drawing:
    """Plan pictures of prompts, whose seeds begin at 4, in two steps."""
    specs = tuple(ImageSpec(prompt, 4 + number) for number, prompt in enumerate(prompts))
    settings = find_sampler(sampler).drawing_settings()
    return Drawing(specs, ModelSettings(**model), SampleSettings(steps=2, guidance_scale=3.3), settings, adapter)


def write_picture(file: Path, drawing: Drawing, place: tuple[int, int] = (0, 1), commit: str | None = None) -> Path:
    """Write a picture of the first shot of a drawing, at a place of its batch."""
    model: Any = SimpleNamespace(commit=commit, digest=MODEL_DIGEST)
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    write_png(file, to_picture(image), describe(drawing, model, drawing.specs[0], place))
    return file


def texts_of(file: Path) -> dict[str, str]:
    """Read the text chunks of a PNG by Pillow alone."""
    with Image.open(file) as image:
        return dict(image.text)


def rewrite(source: Path, target: Path, **changed: str | None) -> Path:
    """Copy a picture with other texts; None leaves one out."""
    info = PngInfo()
    for key, value in {**texts_of(source), **changed}.items():
        if value is not None:
            info.add_itxt(key, value)
    with Image.open(source) as image:
        image.save(target, pnginfo=info)
    return target
