"""One picture of the same seeds before and after training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from reported_runs import data_of, write_reported

from rlcm_cli.pictures.contact_sheet import GAP
from rlcm_cli.report.run import before_after
from rlcm_cli.report.run.before_after import PAIRS_A_ROW, ROWS, arrange_pairs, write_pairs

CELL = 8 + GAP


def greys(picture: Image.Image, columns: int) -> list[int]:
    """Grey of each picture of a sheet, row by row."""
    pixels = np.asarray(picture)
    rows = (pixels.shape[0] - GAP) // CELL
    return [int(pixels[GAP + CELL * row, GAP + CELL * column, 0]) for row in range(rows) for column in range(columns)]


def test_each_prompt_is_a_pair_of_the_first_and_the_last_evaluation(tmp_path):
    layout = write_reported(tmp_path / "run", rollouts=0, checkpoints=(0, 2, 4))
    path = write_pairs(layout)
    assert path == layout.root / "before_after.png"
    with Image.open(path) as picture:
        assert picture.width == 2 * PAIRS_A_ROW * CELL + GAP
        # 40 a checkpoint; four prompts, and the ground of the sheet beside them.
        assert greys(picture, 2 * PAIRS_A_ROW) == [0, 160] * 4 + [221] * 4


@pytest.mark.parametrize("checkpoints", [(), (0,)])
def test_without_two_evaluations_there_is_no_picture(tmp_path, checkpoints):
    layout = write_reported(tmp_path / "run", rollouts=0, checkpoints=checkpoints)
    assert write_pairs(layout) is None
    assert not (layout.root / "before_after.png").exists()


def test_a_prompt_is_shown_by_its_first_image_and_held_out_ones_come_first(tmp_path, monkeypatch):
    data = data_of(write_reported(tmp_path / "run", rollouts=0))
    laid = []
    monkeypatch.setattr(before_after, "arrange_sheet", lambda images, columns: laid.append((images, columns)))
    before, after = data.evaluations[0], data.evaluations[-1]
    before.images[:] = np.arange(len(before.prompts), dtype=np.uint8)[:, None, None, None]
    arrange_pairs(before, after)
    ((images, columns),) = laid
    assert columns == 2 * PAIRS_A_ROW
    assert [int(image[0, 0, 0]) for image in images[::2]] == [0, 2, 4, 6]
    assert before.held_out[0]


def test_no_more_than_fit_are_shown(tmp_path):
    prompts = [f"a {number}" for number in range(PAIRS_A_ROW * ROWS + 3)]
    data = data_of(write_reported(tmp_path / "run", rollouts=0, prompts=prompts))
    sheet = arrange_pairs(data.evaluations[0], data.evaluations[-1])
    assert sheet.size == (2 * PAIRS_A_ROW * CELL + GAP, ROWS * CELL + GAP)
