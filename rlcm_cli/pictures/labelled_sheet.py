"""Labelled sheets: blocks of equal pictures with names above and to the left of them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rlcm_cli.pictures.contact_sheet import to_picture

GROUND = "#e8e8e8"
INK = "#333333"
LEAST_CELL = 128
"""Pixels along a side of a picture on the sheet; smaller ones are magnified by a whole number, each pixel kept."""
MOST_PIXELS = 48_000_000
"""Of all pictures together; larger ones are shrunk, so that any viewer opens the sheet."""
LEAST_TEXT = 13
TEXT_PER_CELL = 1 / 18
GAP_PER_CELL = 1 / 24
LABEL_LINES = 2
ROW_LABEL_LINES = 4


@dataclass(frozen=True)
class Block:
    """A table of pictures."""

    caption: str
    """Above it; may be empty."""
    rows: Sequence[str]
    columns: Sequence[str]
    images: Sequence[Sequence[Tensor]]
    """uint8 [3, H, W], rows × columns."""


@dataclass(frozen=True)
class _Style:
    """Measures of a sheet, in pixels."""

    cell: int
    gap: int
    font: ImageFont.FreeTypeFont
    bold: ImageFont.FreeTypeFont
    """Of captions."""

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return round(self.font.size * 1.3)

    @property
    def between(self) -> int:
        """Space between blocks."""
        return 3 * self.gap

    def wrap(self, text: str, width: int, lines: int, font: ImageFont.FreeTypeFont | None = None) -> list[str]:
        """Break a text into lines; of one that is too long the middle is left out."""
        return wrap_text(text, lambda part: (font or self.font).getlength(part) <= width, lines)


def arrange_blocks(blocks: Sequence[Block]) -> Image.Image:
    """Lay blocks below one another, all pictures in one size.

    Labels that do not fit lose their middle, since names of runs differ at their ends.
    """
    style = _choose_style(blocks)
    cell, gap = style.cell, style.gap
    beside = [style.wrap(row, round(cell * 1.2), ROW_LABEL_LINES) for block in blocks for row in block.rows]
    margin = math.ceil(max(style.font.getlength(line) for lines in beside for line in lines)) + 2 * gap
    width = margin + max(len(block.columns) for block in blocks) * (cell + gap) + gap
    heads = [[style.wrap(column, cell, LABEL_LINES) for column in block.columns] for block in blocks]
    captions = [style.wrap(block.caption, width - margin - gap, LABEL_LINES, style.bold) for block in blocks]
    heights = [
        _height_above(style, caption, head) + len(block.rows) * (cell + gap)
        for block, caption, head in zip(blocks, captions, heads, strict=True)
    ]
    sheet = Image.new("RGB", (width, sum(heights) + style.between * (len(blocks) - 1) + 2 * gap), GROUND)
    draw = ImageDraw.Draw(sheet)
    top, rows = gap, iter(beside)
    for block, caption, head, height in zip(blocks, captions, heads, heights, strict=True):
        _write_lines(draw, style, caption, margin, top, "left", style.bold)
        first_row = top + _height_above(style, caption, head)
        for number, lines in enumerate(head):
            middle = margin + number * (cell + gap) + cell // 2
            _write_lines(draw, style, lines, middle, first_row - gap // 2 - len(lines) * style.line, "centre")
        for number, row in enumerate(block.images):
            y = first_row + number * (cell + gap)
            lines = next(rows)
            _write_lines(draw, style, lines, margin - gap, y + (cell - len(lines) * style.line) // 2, "right")
            for column, image in enumerate(row):
                sheet.paste(_resize(to_picture(image), cell), (margin + column * (cell + gap), y))
        top += height + style.between
    return sheet


def wrap_text(text: str, fits: Callable[[str], bool], lines: int) -> list[str]:
    """Break a text after spaces, hyphens and the like into at most `lines` lines that fit.

    Of a text that is too long as little of the middle as it takes is replaced by `…`.
    """
    if not text:
        return []
    for left_out in range(len(text)):
        kept = len(text) - left_out
        head, tail = text[: (kept + 1) // 2], text[len(text) - kept // 2 :]
        wrapped = _wrap(f"{head}…{tail}" if left_out else text, fits)
        if len(wrapped) <= lines and all(fits(line) for line in wrapped):
            return wrapped
    return ["…"]


def _wrap(text: str, fits: Callable[[str], bool]) -> list[str]:
    wrapped: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r"[^\s\-_/,]*[\s\-_/,]*", paragraph):
            if line and not fits((line + word).rstrip()):
                wrapped.append(line.rstrip())
                line = ""
            line += word
        wrapped.append(line.rstrip())
    return wrapped


def _choose_style(blocks: Sequence[Block]) -> _Style:
    images = [image for block in blocks for row in block.images for image in row]
    largest = max(max(image.shape[1:]) for image in images)
    cell = largest * max(1, math.ceil(LEAST_CELL / largest))
    cell = min(cell, math.isqrt(MOST_PIXELS // len(images)))
    text = max(LEAST_TEXT, round(cell * TEXT_PER_CELL))
    fonts = (_load_font(name, text) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"))
    return _Style(cell, max(4, round(cell * GAP_PER_CELL)), *fonts)


@functools.cache
def _load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font has only ASCII; matplotlib brings one with Latin, Greek and Cyrillic letters.
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, size)


def _height_above(style: _Style, caption: Sequence[str], head: Sequence[Sequence[str]]) -> int:
    """Height of a block's caption and column names."""
    lines = len(caption) + max(map(len, head))
    return lines * style.line + style.gap * (2 if caption else 1)


def _write_lines(
    draw: ImageDraw.ImageDraw,
    style: _Style,
    lines: Sequence[str],
    x: int,
    y: int,
    side: Literal["left", "centre", "right"],
    font: ImageFont.FreeTypeFont | None = None,
) -> None:
    anchor = {"left": "la", "centre": "ma", "right": "ra"}[side]
    for number, line in enumerate(lines):
        draw.text((x, y + number * style.line), line, INK, font or style.font, anchor)


def _resize(picture: Image.Image, cell: int) -> Image.Image:
    longer = max(picture.size)
    width, height = (round(side * cell / longer) for side in picture.size)
    exact = cell % longer == 0
    return picture.resize((width, height), Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
