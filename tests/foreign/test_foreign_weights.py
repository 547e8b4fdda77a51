"""Weights in a folder: which files are loaded, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rlcm_cli.foreign.faults import ForeignError
from rlcm_cli.foreign.weights import check_report, check_tensors, choose_variant, find_weights, variant_of


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "unet"
    place.mkdir()
    return place


def add(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def add_index(folder: Path, name: str, *shards: str) -> None:
    weight_map = {str(number): shard for number, shard in enumerate(shards)}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class TestFind:
    @pytest.mark.parametrize(
        ("names", "variant", "chosen"),
        [
            (["model.safetensors"], None, "model.safetensors"),
            (["model.safetensors", "model.fp16.safetensors", "model.bin"], None, "model.safetensors"),
            (["model.fp32.safetensors", "model.bf16.safetensors"], "bf16", "model.bf16.safetensors"),
            (["model.ema.safetensors", "models.safetensors"], "ema", "model.ema.safetensors"),
            (["model.ema.safetensors", "model.fp16.safetensors"], "fp16", "model.fp16.safetensors"),
        ],
    )
    def test_the_plain_file_is_chosen_before_its_variants(self, folder, names, variant, chosen):
        add(folder, *names)
        assert find_weights(folder, "model") == (variant, [folder / chosen])

    def test_an_index_stands_for_its_shards_unless_the_whole_is_there(self, folder):
        shards = add(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        add_index(folder, "model.safetensors.index.json", *(shard.name for shard in shards))
        assert find_weights(folder, "model") == (None, shards)
        (whole,) = add(folder, "model.safetensors")
        assert find_weights(folder, "model") == (None, [whole])

    def test_an_index_of_a_variant_has_that_variant(self, folder):
        shards = add(folder, "model.fp16-00001-of-00001.safetensors")
        add_index(folder, "model.safetensors.index.fp16.json", shards[0].name)
        assert find_weights(folder, "model") == ("fp16", shards)

    def test_all_shards_of_a_variant_are_its_files(self, folder):
        shards = add(folder, *(f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)))
        with pytest.raises(ForeignError, match="without its index"):
            find_weights(folder, "model")
        add_index(folder, "model.safetensors.index.fp16.json", *(shard.name for shard in shards))
        assert find_weights(folder, "model") == ("fp16", shards)

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            ([], r"unet holds no safetensors weights \(model\.safetensors\)"),
            (["other.safetensors"], "unet holds no safetensors weights"),
            (["model-00001-of-00002.safetensors"], "without its index, model.safetensors.index.json"),
            (["model.bin", "model.ckpt"], r"only as a pickle \(model\.bin\), .*; convert it to safetensors"),
            (["x.pth"], r"only as a pickle \(x\.pth\)"),
            (["model.a.safetensors", "model.b.safetensors"], "unet/model is there in the variants a, b only"),
        ],
    )
    def test_what_cannot_be_loaded_is_refused(self, folder, names, said):
        add(folder, *names)
        with pytest.raises(ForeignError, match=said):
            find_weights(folder, "model")

    def test_a_folder_that_is_missing_is_named(self, folder):
        with pytest.raises(ForeignError, match=r"^its folder vae is missing$"):
            find_weights(folder / "vae", "model")

    def test_what_is_no_file_is_refused(self, folder):
        (folder / "model.safetensors").mkdir()
        with pytest.raises(ForeignError, match=r"^unet/model\.safetensors is not a regular file$"):
            find_weights(folder, "model")


def test_of_several_variants_a_known_one_is_chosen():
    assert choose_variant([None, "fp16"], "x") is None
    assert choose_variant(["fp32", "fp16", "bf16"], "x") == "fp16"
    assert choose_variant(["ema"], "x") == "ema"
    with pytest.raises(ForeignError, match=r"^x is there in the variants ema, odd only$"):
        choose_variant(["odd", "ema"], "x")


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("model.safetensors", None),
        ("model.fp16.safetensors", "fp16"),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("model.safetensors.index.json", None),
        ("model.safetensors.index.fp16.json", "fp16"),
        ("model.fp16.safetensors.index.json", "fp16"),
    ],
)
def test_the_variant_of_a_name(file, variant):
    assert variant_of(file, "model") == variant


class TestTensors:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
    def test_plain_numbers_pass(self, folder, dtype):
        safetensors.torch.save_file({"x": torch.zeros(2, dtype=dtype)}, folder / "a.safetensors")
        check_tensors(folder / "a.safetensors")

    @pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8")])
    def test_quantised_ones_are_refused_by_name(self, folder, dtype, name):
        tensors = {"a": torch.zeros(2), "b.weight": torch.zeros(2).to(dtype)}
        safetensors.torch.save_file(tensors, folder / "a.safetensors")
        with pytest.raises(ForeignError, match=rf"^unet/a\.safetensors stores b\.weight as {name}.*is quantised"):
            check_tensors(folder / "a.safetensors")

    @pytest.mark.parametrize("data", [b"", b"no weights", None])
    def test_a_damaged_file_is_refused(self, folder, data):
        file = folder / "a.safetensors"
        safetensors.torch.save_file({"x": torch.zeros(100)}, file)
        file.write_bytes(file.read_bytes()[:-4] if data is None else data)
        with pytest.raises(ForeignError, match=r"^unet/a\.safetensors is damaged or not safetensors \("):
            check_tensors(file)


class TestReport:
    def test_a_whole_network_passes(self):
        check_report({"missing_keys": [], "unexpected_keys": ["x"], "mismatched_keys": []})

    @pytest.mark.parametrize(
        ("report", "said"),
        [
            ({"missing_keys": ["b"], "mismatched_keys": []}, "^lack b$"),
            ({"missing_keys": {"c", "b", "a"}, "mismatched_keys": []}, "^lack a and 2 more$"),
            ({"missing_keys": [], "mismatched_keys": ["x"]}, "^have x in another shape than its config.json says$"),
            ({"missing_keys": [], "mismatched_keys": [("y", (1,), (2,)), ("x", (1,), (2,))]}, "^have x in another"),
        ],
    )
    def test_what_was_made_up_is_named(self, report, said):
        with pytest.raises(ForeignError, match=said):
            check_report(report)
