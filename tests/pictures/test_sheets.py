"""Labelled sheets: labels that fit, and pictures that are where their labels say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlcm_cli.pictures import labelled_sheet as sheets
from rlcm_cli.pictures.labelled_sheet import Block, arrange_blocks, wrap_text


def fits(line: str) -> bool:
    return len(line) <= 10


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("", 2, []),
        ("short", 1, ["short"]),
        ("two words of it", 2, ["two words", "of it"]),
        ("a-long-run-name", 2, ["a-long-", "run-name"]),
        ("a cat\nseed 7", 2, ["a cat", "seed 7"]),
        ("compression21", 1, ["compr…on21"]),
        ("compression21", 2, ["compr…on21"]),
    ],
)
def test_labels_are_broken_between_words_and_lose_their_middle(text, lines, expected):
    assert wrap_text(text, fits, lines) == expected


def test_a_label_for_which_there_is_no_room_still_says_that_it_is_there():
    assert wrap_text("cat", lambda line: False, 2) == ["…"]


def plain(value: int, size: int = 64) -> torch.Tensor:
    """A picture of one red, which no text has, drawn in greys."""
    return torch.tensor([value, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, size, size)


def places(sheet: np.ndarray, value: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the pixels of a colour."""
    rows, columns = np.where((sheet == (value, 0, 0)).all(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_pictures_stand_in_rows_and_columns_and_keep_their_pixels():
    values = [[200, 150, 100], [180, 130, 80]]
    images = [[plain(value) for value in row] for row in values]
    sheet = np.asarray(arrange_blocks([Block("a cat", ["base", "x" * 80], ["1 step", "2 steps", "4"], images)]))
    found = np.array([[places(sheet, value) for value in row] for row in values])
    assert (found[..., 1] - found[..., 0] == 128).all()  # 64 pixels, twice
    assert (found[..., 3] - found[..., 2] == 128).all()
    assert (found[0, :, 0] == found[0, 0, 0]).all()
    assert (np.diff(found[0, :, 2]) == 133).all()
    assert found[1, 0, 0] - found[0, 0, 0] == 133


def test_blocks_stand_below_one_another_with_a_label_each():
    one = Block("a", ["r"], ["c"], [[plain(100)]])
    alone = np.asarray(arrange_blocks([one]))
    both = np.asarray(arrange_blocks([one, Block("a", ["r"], ["c"], [[plain(150)]])]))
    assert both.shape[1] == alone.shape[1]
    top, _, left, right = places(both, 150)
    upper = places(both, 100)
    assert top > upper[1]
    assert (left, right) == upper[2:]
    # caption and labels of the second are those of the first, drawn again
    shift = top - upper[0]
    assert np.array_equal(both[shift + 2 : top], both[2 : upper[0]])
    assert (both[: upper[0]] < 100).any()


def test_pictures_of_several_sizes_are_drawn_in_one():
    sheet = np.asarray(arrange_blocks([Block("", ["r"], ["a", "b"], [[plain(100, 32), plain(150, 160)]])]))
    assert places(sheet, 100)[1] - places(sheet, 100)[0] == 160
    assert places(sheet, 150)[1] - places(sheet, 150)[0] == 160


def test_a_sheet_of_many_large_pictures_is_shrunk(monkeypatch):
    monkeypatch.setattr(sheets, "MOST_PIXELS", 4 * 100 * 100)
    images = [[plain(100, 512)] * 2] * 2
    sheet = arrange_blocks([Block("", ["a", "b"], ["c", "d"], images)])
    assert max(sheet.size) < 400
