"""Folders of images with captions: where the captions are, and what pictures of any make become."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.pairs import open_pairs

RAMP = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))


def open_folder(folder):
    return open_pairs(str(folder), image_column="image", caption_column="text")


def refusal(folder) -> str:
    with pytest.raises(ConfigError) as caught:
        open_folder(folder).take([0])
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    """A folder with metadata for a picture that a test puts there."""
    place = tmp_path / "set"
    place.mkdir()
    (place / "metadata.csv").write_text("file_name,text\na.png,a cat\n")
    return place


def take(folder) -> np.ndarray:
    (image,), captions = open_folder(folder).take([0])
    assert captions == ["a cat"]
    assert image.mode == "RGB"
    return np.asarray(image)


class TestPictures:
    def test_grey_of_16_bits_is_scaled(self, folder):
        Image.fromarray(RAMP.astype(np.uint16) * 257).save(folder / "a.png")
        assert np.array_equal(take(folder), np.stack([RAMP] * 3, axis=-1))

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_is_white(self, folder, mode):
        pixels = np.zeros((16, 16, 4), np.uint8)
        pixels[4:12, 4:12] = (200, 200, 200, 255)
        pixels[0, 0] = (0, 0, 0, 102)
        picture = Image.fromarray(pixels)
        if mode == "P":
            pixels[0, 0, 3] = 0
            picture = Image.fromarray(np.where(pixels[..., 3] > 0, 1, 0).astype(np.uint8), mode="P")
            picture.putpalette([0, 0, 0, 200, 200, 200])
            picture.info["transparency"] = 0
        picture.convert(mode).save(folder / "a.png")
        found = take(folder)
        assert found[8, 8].tolist() == [200] * 3
        assert found[1, 1].tolist() == [255] * 3
        assert found[0, 0].tolist() == ([255] * 3 if mode == "P" else [153] * 3)

    def test_one_colour_that_is_transparent_is_white(self, folder):
        Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / "a.png", transparency=(1, 2, 3))
        assert take(folder).min() == 255

    def test_a_camera_that_was_held_upright(self, folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        wide = Image.new("RGB", (30, 20))
        wide.paste("white", (0, 0, 15, 20))
        wide.save(folder / "a.png", exif=exif)
        found = take(folder)
        assert found.shape == (30, 20, 3)
        assert found[:14].min() == 255
        assert found[16:].max() == 0

    def test_of_an_animation_the_first_frame(self, folder):
        frames = [Image.new("L", (16, 16), value) for value in (40, 200)]
        frames[0].save(folder / "a.png", format="GIF", save_all=True, append_images=frames[1:])
        assert np.unique(take(folder)).tolist() == [40]

    @pytest.mark.parametrize("mode", ["CMYK", "1", "L", "P"])
    def test_other_modes_are_converted(self, folder, mode):
        Image.new("RGB", (16, 16), "white").convert(mode).save(
            folder / "a.png", format="TIFF" if mode == "CMYK" else "PNG"
        )
        assert take(folder).min() >= 254

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_an_unknown_range_is_refused(self, folder, mode):
        Image.new(mode, (16, 16)).save(folder / "a.png", format="TIFF")
        assert f"a.png has pixels of 32 bits (mode {mode}), whose white is not known" in refusal(folder)

    def test_damaged_files_are_refused_by_name(self, folder):
        file = folder / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
        whole = file.read_bytes()
        for data in (whole[: len(whole) // 2], whole[:20], b"no picture", b""):
            file.write_bytes(data)
            assert f"{file} is damaged or not a picture" in refusal(folder)

    @pytest.mark.parametrize("size", [15, 40])
    def test_a_picture_of_too_many_pixels_is_refused(self, folder, monkeypatch, size):
        Image.new("RGB", (size, 10)).save(folder / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert "a.png has more than 100 pixels; shrink it" in refusal(folder)


class TestCaptions:
    def test_stand_in_files_beside_the_images(self, tmp_path):
        (tmp_path / "10_cats").mkdir()
        for name, suffix, text in [("b", ".txt", "a dog\n"), ("10_cats/a", ".caption", "a cat,\n sitting")]:
            Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
            (tmp_path / name).with_suffix(suffix).write_text(text)
        assert open_folder(tmp_path).take([0, 1])[1] == ["a cat, sitting", "a dog"]

    def test_one_that_is_missing_or_empty_is_named(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        message = refusal(tmp_path)
        assert "a.png has no caption; put a metadata.csv" in message
        assert "or a caption into a.txt" in message
        (tmp_path / "a.txt").write_text(" \n")
        assert "the caption a.txt is empty" in refusal(tmp_path)
        (tmp_path / "a.txt").write_bytes(b"B\xe4r")
        assert "a.txt is not UTF-8 text" in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["set [v1]", "a*b?", "{x}", "**"])
    def test_a_folder_is_what_it_is_called(self, tmp_path, name):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (16, 16)).save(folder / "a[1].png")
        (folder / "metadata.jsonl").write_text('{"file_name": "a[1].png", "text": "a cat"}\n')
        assert take(folder).max() == 0

    def test_a_parquet_file_is_what_it_is_called(self, tmp_path):
        import io

        import pyarrow
        import pyarrow.parquet

        data = io.BytesIO()
        Image.new("RGBA", (8, 8)).save(data, "PNG")
        table = pyarrow.table({"image": [{"bytes": data.getvalue(), "path": None}], "text": ["a cat"]})
        pyarrow.parquet.write_table(table, tmp_path / "set [1].parquet")
        assert take(tmp_path / "set [1].parquet").min() == 255

    def test_by_splits_those_of_train(self, folder, tmp_path):
        (tmp_path / "splits").mkdir()
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        folder.rename(tmp_path / "splits" / "train")
        assert take(tmp_path / "splits").max() == 0

    @pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png"])
    def test_an_image_outside_of_the_folder_is_refused(self, folder, name):
        (folder / "metadata.csv").write_text(f"file_name,text\n{name},a cat\n")
        assert f"metadata.csv, line 2: '{name}' leads out of the folder" in refusal(folder)

    def test_a_broken_link_is_named(self, folder):
        assert "a.png is not there; put it there, or take out its row" in refusal(folder)
        (folder / "a.png").symlink_to(folder / "gone.png")
        assert "a.png is a broken link" in refusal(folder)


def test_the_digest_is_that_of_images_and_captions(folder):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    first = open_folder(folder).digest
    assert open_folder(folder).digest == first
    (folder / "metadata.csv").write_text("file_name,text\na.png,a dog\n")
    second = open_folder(folder).digest
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    assert len({first, second, open_folder(folder).digest}) == 3
