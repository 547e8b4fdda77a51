"""Images of several methods side by side: a block a method, a row a number of model calls, a column a prompt."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.report.compare.picture import DPI
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.wording import count

if TYPE_CHECKING:
    import numpy as np

IMAGE_INCHES = 0.62
MARGIN_INCHES = 1.0
LETTER_INCHES = 0.075
LONGEST_PROMPT = 24
LONGEST_LINE = 22
"""Letters of a method's name next to its images, which is not turned: it may be longer than they are high."""


@dataclass(frozen=True)
class ImageRow:
    """Images of one method and number of model calls."""

    method: str
    steps: int
    prompts: Sequence[str]
    folder: Path
    """Of the images, a PNG a prompt, which sort by name as the prompts do; a `sheet.png` next to them is left out."""


def write_samples(rows: Sequence[ImageRow], folder: Path) -> Path:
    """Lay rows of the same prompts on `samples.png`, those of one method in a block; return the path."""
    from matplotlib.figure import Figure

    blocks = [(method, list(group)) for method, group in itertools.groupby(rows, key=lambda row: row.method)]
    prompts = [textwrap.shorten(prompt, LONGEST_PROMPT, placeholder="…") for prompt in rows[0].prompts]
    lines = [line for method, _ in blocks for line in textwrap.wrap(method, LONGEST_LINE)]
    names = LETTER_INCHES * max(map(len, lines))
    width, height = IMAGE_INCHES * len(prompts) + MARGIN_INCHES + names, IMAGE_INCHES * len(rows) + MARGIN_INCHES
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(blocks), squeeze=False, height_ratios=[len(group) for _, group in blocks])[:, 0]
    for axis, (method, group) in zip(axes, blocks, strict=True):
        axis.imshow(_stack(group), extent=(0, len(prompts), len(group), 0), aspect="equal")
        axis.set_yticks([row + 0.5 for row in range(len(group))], [count(row.steps, "step") for row in group])
        axis.set_xticks([])
        axis.tick_params(length=0, labelsize=8)
        axis.set_ylabel(textwrap.fill(method, LONGEST_LINE), fontsize=9, rotation=0, ha="right", va="center")
        axis.spines[:].set_visible(False)
    columns = axes[0].secondary_xaxis("top")
    columns.set_xticks([column + 0.5 for column in range(len(prompts))], prompts, rotation=30, ha="left", fontsize=8)
    columns.tick_params(length=0)
    columns.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.08)
    path = folder / "samples.png"
    replace_bytes(path, buffer.getvalue())
    return path


def _stack(rows: Sequence[ImageRow]) -> np.ndarray:
    """Lay the images of rows one below the other, uint8 [rows · H, prompts · W, 3]."""
    import numpy as np

    return np.concatenate([np.concatenate(_read_images(row.folder), axis=1) for row in rows])


def _read_images(folder: Path) -> list[np.ndarray]:
    import numpy as np
    from PIL import Image

    images = []
    for file in sorted(folder.glob("*.png")):
        if file.name != "sheet.png":
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("RGB")))
    return images
