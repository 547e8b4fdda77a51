"""Files of foreign folders: none that never ends, leads elsewhere or names code."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from rlcm_cli.foreign import folders
from rlcm_cli.foreign.faults import ForeignError
from rlcm_cli.foreign.folders import (
    check_configuration,
    check_index,
    check_regular,
    read_json_object,
    suggest_path,
)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "unet"
    place.mkdir()
    return place


class TestJson:
    def read(self, folder: Path, data: str | bytes):
        file = folder / "config.json"
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        return read_json_object(file)

    def test_an_object_is_read_with_infinities(self, folder):
        assert self.read(folder, '{"a": [1, "é"], "b": Infinity, "c": -Infinity}') == {
            "a": [1, "é"],
            "b": math.inf,
            "c": -math.inf,
        }

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ("[1]", "is not a JSON object$"),
            ('"x"', "is not a JSON object$"),
            ('{"a": NaN}', r"is not readable as JSON \(NaN is not a value\)$"),
            ('{"a": ', r"is not readable as JSON \(Expecting value"),
            ("", r"is not readable as JSON \(Expecting value"),
            (b'{"a": "\xff"}', r"is not readable as JSON \("),
            ("[" * 100_000, r"is not readable as JSON \(nested too deep\)$"),
            (f'{{"a": {"9" * 5000}}}', r"is not readable as JSON \(Exceeds the limit"),
        ],
    )
    def test_anything_else_is_refused_by_name(self, folder, data, said):
        with pytest.raises(ForeignError, match=rf"^unet/config\.json {said}"):
            self.read(folder, data)

    def test_a_file_that_is_too_large_is_not_read(self, folder, monkeypatch):
        monkeypatch.setattr(folders, "LARGEST_JSON", 1_234)
        assert self.read(folder, "{}".ljust(1_234)) == {}
        with pytest.raises(ForeignError, match=r"^unet/config\.json has 1,235 bytes, too many for a configuration$"):
            self.read(folder, "{}".ljust(1_235))

    def test_a_file_that_cannot_be_opened_is_refused(self, folder, monkeypatch):
        (folder / "config.json").write_text("{}")

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_text", refuse)
        with pytest.raises(ForeignError, match=r"^unet/config\.json cannot be read \(Permission denied\)$"):
            read_json_object(folder / "config.json")


class TestRegular:
    def test_a_file_and_a_link_to_one_pass(self, folder):
        (folder / "a").touch()
        (folder / "b").symlink_to(folder / "a")
        check_regular(folder / "a")
        check_regular(folder / "b")

    @pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
    def test_what_is_no_file_is_refused(self, folder, kind):
        path = folder / "x.json"
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(ForeignError, match=r"^unet/x\.json is not a regular file$"):
            check_regular(path)

    def test_what_is_not_there_is_missing(self, folder):
        (folder / "link").symlink_to(folder / "gone")
        for name in ("gone", "link"):
            with pytest.raises(ForeignError, match=rf"^unet/{name} is missing$"):
                check_regular(folder / name)

    def test_a_path_that_the_system_refuses_is_told(self, folder):
        # Some versions of Python answer that such a file does not exist.
        with pytest.raises(ForeignError, match=r"cannot be read \(File name too long\)$|is missing$"):
            check_regular(folder / ("x" * 300))


class TestConfiguration:
    @pytest.mark.parametrize(
        "values",
        [
            {"_attn_implementation": "owner/kernel"},
            {"attn_implementation": "owner/kernel@v1"},
            {"_attn_implementation_internal": "owner/kernel"},
            {"experts_implementation": "owner/kernel"},
            {"text_config": {"layers": [{"_attn_implementation": "owner/kernel"}]}},
            {"_attn_implementation": {"vision": "sdpa", "text": "owner/kernel"}},
        ],
    )
    def test_a_kernel_of_the_hub_is_refused(self, values):
        with pytest.raises(ForeignError, match=r"^unet/config\.json names a kernel of the hub .*; remove that entry$"):
            check_configuration(values, Path("x/unet/config.json"))

    @pytest.mark.parametrize(
        "values",
        [{}, {"_attn_implementation": "sdpa"}, {"_attn_implementation": None}, {"_name_or_path": "owner/model"}],
    )
    def test_other_entries_pass(self, values):
        check_configuration(values, Path("x/unet/config.json"))


class TestIndex:
    @staticmethod
    def write(folder: Path, weight_map: object) -> Path:
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return index

    def test_the_shards_are_named_once_each_in_order(self, folder):
        for name in ("b.safetensors", "a.safetensors"):
            (folder / name).touch()
        index = self.write(folder, {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"})
        assert check_index(index) == [folder / "a.safetensors", folder / "b.safetensors"]

    @pytest.mark.parametrize("name", ["../a.safetensors", "x\\a.safetensors", ".a.safetensors", "a.bin", 3, "/a"])
    def test_a_shard_that_is_not_a_file_of_the_folder_is_refused(self, folder, name):
        with pytest.raises(ForeignError, match=r"names .*, which is not a safetensors file of the same folder$"):
            check_index(self.write(folder, {"x": name}))

    def test_a_shard_that_is_missing_is_named(self, folder):
        with pytest.raises(ForeignError, match=r"^unet/a\.safetensors is missing$"):
            check_index(self.write(folder, {"x": "a.safetensors"}))

    @pytest.mark.parametrize(("weight_map", "metadata"), [({}, {}), ([], {}), (None, {}), ({"x": "a"}, "none")])
    def test_what_is_no_index_is_refused(self, folder, weight_map, metadata):
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
        with pytest.raises(ForeignError, match=r"is not an index of weights \(weight_map, metadata\)$"):
            check_index(index)


def test_a_path_that_is_nearly_there_is_suggested(folder):
    (folder / "model_index.json").touch()
    assert suggest_path(str(folder / "model_indx.json")) == f"; did you mean {folder / 'model_index.json'}?"
    assert suggest_path(str(folder / "something else")) == ""
    assert suggest_path(str(folder / "no" / "model_index.json")) == ""
