"""Text files of people, in whatever encoding their editors write."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.text import find_text_fault, read_text


def refusal(path: Path | str, *what: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_text(Path(path), *what)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_tells_the_encoding_and_is_no_part_of_the_text(tmp_path, encoding):
    path = tmp_path / "x.txt"
    text = "a cat\r\nB\u00e4r \U0001f43b\r\n"
    path.write_bytes(("\ufeff" * encoding.endswith("-be") + text).encode(encoding))
    assert read_text(path) == text


def test_an_empty_file_and_a_pipe_are_read(tmp_path):
    (tmp_path / "x").touch()
    assert read_text(tmp_path / "x") == ""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a cat",))
    writer.start()
    assert read_text(tmp_path / "pipe") == "a cat"
    writer.join()


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-8-sig", "UTF-8")])
def test_a_file_that_is_cut_is_refused_by_its_own_encoding(tmp_path, encoding, name):
    path = tmp_path / "x.txt"
    path.write_bytes("a \U0001f43b".encode(encoding)[:-1])
    assert f"prompt file {path} is not {name} text (line 1, byte " in refusal(path)


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("B\u00e4r".encode("latin-1"))
    assert f"{path} is not UTF-8 text (line 1, byte 1); save it as UTF-8" in refusal(path)
    path.write_bytes(b"a cat\na dog\n" + "B\u00e4r".encode("latin-1"))
    assert "(line 3, byte 13)" in refusal(path)
    # Without a mark nothing tells UTF-16 from binary data.
    path.write_bytes("a cat\nB\u00e4r".encode("utf-16-le"))
    assert "not UTF-8 text" in refusal(path)
    path.write_bytes("a cat\na dog".encode("utf-16-le"))
    assert f"{path}, line 1: holds a NUL character" in refusal(path)


def test_a_device_is_refused():
    assert "is a device, not a file" in refusal("/dev/zero")


def test_a_folder_is_refused(tmp_path):
    assert f"{tmp_path} cannot be read" in refusal(tmp_path)


def test_what_is_not_there_and_a_path_that_cannot_be_are_told_apart(tmp_path):
    assert refusal(tmp_path / "x", "table") == f"table {tmp_path / 'x'} is not there; check the path"
    assert "cannot be read: " in refusal("a\0b")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a cat \U0001f43b", None),
        ("", None),
        ("a\0cat", "holds a NUL character"),
        ("a \ud83d", "holds half of a character (a lone surrogate)"),
        ("\udc3b", "holds half of a character (a lone surrogate)"),
    ],
)
def test_what_a_prompt_cannot_hold(text, fault):
    found = find_text_fault(text)
    assert found is None if fault is None else found.startswith(fault)
