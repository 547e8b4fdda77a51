"""What pictures of any make become: upright, opaque, in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rlcm_cli.prompts.pictures import PictureError, flatten_picture, open_picture

RAMP = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))


@pytest.fixture
def file(tmp_path):
    """A file that a test puts a picture into."""
    return tmp_path / "a.png"


def take(file) -> np.ndarray:
    image = open_picture(file)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(file) -> str:
    with pytest.raises(PictureError) as caught:
        open_picture(file)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_grey_of_16_bits_is_scaled(file):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(file)
    assert np.array_equal(take(file), np.stack([RAMP] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(file, mode):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (200, 200, 200, 255)
    pixels[0, 0] = (0, 0, 0, 102)
    picture = Image.fromarray(pixels)
    if mode == "P":
        pixels[0, 0, 3] = 0
        picture = Image.fromarray(np.where(pixels[..., 3] > 0, 1, 0).astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, 200, 200, 200])
        picture.info["transparency"] = 0
    picture.convert(mode).save(file)
    found = take(file)
    assert found[8, 8].tolist() == [200] * 3
    assert found[1, 1].tolist() == [255] * 3
    assert found[0, 0].tolist() == ([255] * 3 if mode == "P" else [153] * 3)


def test_one_colour_that_is_transparent_is_white(file):
    Image.new("RGB", (16, 16), (1, 2, 3)).save(file, transparency=(1, 2, 3))
    assert take(file).min() == 255


def test_a_camera_that_was_held_upright(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.new("RGB", (30, 20))
    wide.paste("white", (0, 0, 15, 20))
    wide.save(file, exif=exif)
    found = take(file)
    assert found.shape == (30, 20, 3)
    assert found[:14].min() == 255
    assert found[16:].max() == 0


def test_of_an_animation_the_first_frame(file):
    frames = [Image.new("L", (16, 16), value) for value in (40, 200)]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    assert np.unique(take(file)).tolist() == [40]


@pytest.mark.parametrize("mode", ["CMYK", "1", "L", "P"])
def test_other_modes_are_converted(file, mode):
    Image.new("RGB", (16, 16), "white").convert(mode).save(file, format="TIFF" if mode == "CMYK" else "PNG")
    assert take(file).min() >= 254


@pytest.mark.parametrize("mode", ["F", "I"])
def test_an_unknown_range_is_refused(file, mode):
    Image.new(mode, (16, 16)).save(file, format="TIFF")
    assert f"has pixels of 32 bits (mode {mode}), whose white is not known" in refusal(file)


def test_damaged_files_are_refused_by_name(file):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    whole = file.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:20], b"no picture", b""):
        file.write_bytes(data)
        assert "is damaged or not a picture" in refusal(file)


@pytest.mark.parametrize("size", [15, 40])
def test_a_picture_of_too_many_pixels_is_refused(file, monkeypatch, size):
    Image.new("RGB", (size, 10)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "has more than 100 pixels; shrink it" in refusal(file)


def test_a_file_that_is_not_there_is_said_to_be_missing(file):
    assert refusal(file) == "is not there"


def test_a_picture_of_8_bits_is_left_as_it_is(file):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    assert np.array_equal(take(file), pixels)
    assert np.array_equal(np.asarray(flatten_picture(Image.fromarray(pixels))), pixels)
