"""Contact sheets: every image in its place with its pixels, and files that are whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rlcm_cli.pictures.contact_sheet import GAP, arrange_sheet, to_picture, write_png

GROUND = (221, 221, 221)


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_an_image_keeps_its_pixels_and_their_places():
    image = noise(2, 5)
    picture = to_picture(image)
    assert (picture.size, picture.mode) == ((5, 2), "RGB")
    assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())
    flipped = image.flip(2)  # not contiguous
    assert np.array_equal(np.asarray(to_picture(flipped)), flipped.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("images", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (5, 2, 3), (2, 4, 1)])
def test_images_stand_in_rows_with_a_gap_around_each(images, columns, rows):
    drawn = [noise(3, 4, seed=number) for number in range(images)]
    sheet = np.asarray(arrange_sheet(drawn, columns))
    assert sheet.shape == (rows * (3 + GAP) + GAP, columns * (4 + GAP) + GAP, 3)
    covered = np.zeros(sheet.shape[:2], bool)
    for number, image in enumerate(drawn):
        top = GAP + number // columns * (3 + GAP)
        left = GAP + number % columns * (4 + GAP)
        assert np.array_equal(sheet[top : top + 3, left : left + 4], image.permute(1, 2, 0).numpy())
        covered[top : top + 3, left : left + 4] = True
    assert (sheet[~covered] == GROUND).all()


def test_a_file_is_written_with_its_texts_in_the_place_of_another(tmp_path):
    file = tmp_path / "out" / "a.png"
    write_png(file, to_picture(noise(4, 4)))
    info = PngInfo()
    info.add_itxt("prompt", "ein Bär")
    image = noise(4, 4, seed=1)
    write_png(file, to_picture(image), info)
    with Image.open(file, formats=["PNG"]) as picture:
        assert dict(picture.text) == {"prompt": "ein Bär"}
        assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())
    assert [entry.name for entry in file.parent.iterdir()] == ["a.png"]
