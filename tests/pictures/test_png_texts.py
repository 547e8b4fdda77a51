"""The text chunks of a PNG, of whatever program; and files that are none."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.png_texts import read_png_texts


def refusal(work) -> str:
    with pytest.raises(ConfigError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_texts_of_any_program_are_read(tmp_path):
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info, dpi=(72, 72))
    assert read_png_texts(tmp_path / "a.png") == {"parameters": "a cat\nSteps: 20"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.png", "no such file"), ("text.png", "is not a PNG; "), ("photo.jpg", "is not a PNG")],
)
def test_what_is_no_png_is_refused(tmp_path, name, words):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    file = tmp_path / name
    assert refusal(lambda: read_png_texts(file, "--x ")).startswith(f"--x {file}: {words}")


def test_a_picture_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)  # of 16: Pillow refuses more than twice as many
    assert "is not a PNG" in refusal(lambda: read_png_texts(tmp_path / "a.png"))


def test_reading_needs_no_torch():
    check = "import sys; import rlcm_cli.pictures.png_texts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
