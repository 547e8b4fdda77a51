"""One picture of the same seeds before and after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL.Image import Image as Picture

from rlcm_cli.pictures.contact_sheet import arrange_sheet, write_png
from rlcm_cli.store.evaluations import Evaluation, read_evaluation
from rlcm_cli.store.layout import RunLayout

PAIRS_A_ROW = 6
ROWS = 6


def write_pairs(layout: RunLayout) -> Path | None:
    """Write pairs (before, after) of the first image of each prompt, held-out prompts first; return the path.

    Before is the first evaluation, after the last; None where there are not two.
    """
    evaluated = layout.evaluations()
    if len(evaluated) < 2:
        return None
    before, after = read_evaluation(layout, evaluated[0]), read_evaluation(layout, evaluated[-1])
    path = layout.root / "before_after.png"
    write_png(path, arrange_pairs(before, after))
    return path


def arrange_pairs(before: Evaluation, after: Evaluation) -> Picture:
    """Lay out pairs (before, after) of the first image of each prompt, of two evaluations of the same images."""
    first_of_prompt: dict[str, int] = {}
    for index, prompt in enumerate(before.prompts):
        first_of_prompt.setdefault(prompt, index)
    images: list[np.ndarray] = []
    for index in list(first_of_prompt.values())[: PAIRS_A_ROW * ROWS]:
        images += [before.images[index], after.images[index]]
    return arrange_sheet(images, 2 * PAIRS_A_ROW)
