"""Folders of images with captions: where the captions are, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.pairs import open_pairs


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


def test_a_picture_that_cannot_be_trained_on_is_refused_by_its_file(folder):
    Image.new("F", (16, 16)).save(folder / "a.png", format="TIFF")
    assert "a.png has pixels of 32 bits (mode F), whose white is not known" in refusal(folder)
    (folder / "a.png").write_bytes(b"no picture")
    assert f"{folder / 'a.png'} is damaged or not a picture" in refusal(folder)


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
