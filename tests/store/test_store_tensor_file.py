"""Safetensors files read without torch: the same digests, values and refusals as with it."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlcm_cli.core.digests import digest_tensors
from rlcm_cli.errors import CorruptFileError, MissingFileError, ModelError
from rlcm_cli.store.checkpoint import digest_safetensors, read_safetensors
from rlcm_cli.store.tensor_file import DTYPES, FLOAT8, read_stored

BITS = {"BOOL": 8, "F4": 4, "C64": 64, "F8_E8M0": 8, **dict.fromkeys(FLOAT8, 8)}


def write(path, entries, data, metadata=None):
    header = {**entries, **({} if metadata is None else {"__metadata__": metadata})}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def bits_of(dtype):
    return BITS.get(dtype) or int(dtype.lstrip("BFUI"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metadata", [None, {}, {"b": "é", "a": "1"}], ids=["no metadata", "empty", "some"])
def test_the_digest_is_that_of_the_tensors_whatever_their_dtype(tmp_path, dtype, metadata):
    size = 12 * bits_of(dtype) // 8
    # 0 and 1 alone are values of a bool.
    data = np.random.default_rng(0).integers(0, 2 if dtype == "BOOL" else 256, 2 * size, dtype=np.uint8).tobytes()
    entries = {
        "b": {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, size]},
        "a": {"dtype": dtype, "shape": [2, 1, 6], "data_offsets": [size, 2 * size]},
        "none": {"dtype": dtype, "shape": [0, 4], "data_offsets": [2 * size, 2 * size]},
    }
    path = write(tmp_path / "x.safetensors", entries, data, metadata)
    read = load_file(path)
    assert digest_safetensors(path) == digest_tensors(read, metadata)
    for name, tensor in read_stored(path)[0].items():
        assert (tensor.shape, tensor.ndim, tensor.numel()) == (read[name].shape, read[name].ndim, read[name].numel())
        assert f"torch.{DTYPES[tensor.dtype]}" == str(read[name].dtype)


def test_a_number_without_extents_and_the_digest_of_no_tensors(tmp_path):
    save_file({"alpha": torch.tensor(4.0)}, tmp_path / "x.safetensors")
    assert digest_safetensors(tmp_path / "x.safetensors") == digest_tensors({"alpha": torch.tensor(4.0)})
    save_file({}, tmp_path / "y.safetensors")
    assert digest_safetensors(tmp_path / "y.safetensors") == digest_tensors({})


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype not in ("C64", "F8_E8M0", "F4")])
def test_values_are_those_of_torch(tmp_path, dtype):
    size = bits_of(dtype) // 8
    codes = np.arange(2 if dtype == "BOOL" else 256, dtype=np.uint8)
    if size > 1:
        codes = np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8)
    count = codes.size // size
    entries = {
        "x": {"dtype": dtype, "shape": [count], "data_offsets": [0, codes.size]},
        "one": {"dtype": dtype, "shape": [1], "data_offsets": [codes.size, codes.size + size]},
    }
    path = write(tmp_path / "x.safetensors", entries, codes.tobytes() + codes[-size:].tobytes())
    expected, (stored, _) = load_file(path), read_stored(path)
    finite = expected["x"].float().isfinite().numpy()
    found = stored["x"].float()
    assert found.dtype == np.float32
    assert np.array_equal(np.isfinite(found), finite)
    assert np.array_equal(found[finite], expected["x"].float().numpy()[finite])
    number = float(expected["one"])
    assert float(stored["one"]) == number or (math.isnan(float(stored["one"])) and not math.isfinite(number))


@pytest.mark.parametrize("dtype", ["C64", "F8_E8M0", "F4"])
def test_a_dtype_of_no_lora_has_no_values_here(tmp_path, dtype):
    size = 2 * bits_of(dtype) // 8
    entries = {"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}
    (tensor,) = read_stored(write(tmp_path / "x.safetensors", entries, bytes(size)))[0].values()
    with pytest.raises(ModelError, match=f"x.safetensors: holds values of the type {dtype}, not a LoRA's; save it"):
        tensor.float()


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F6_E2M3", [4], 3),
        ("F4", [2, 3], 3),
        ("F32", [0, 2**63], 0),
        ("F32", [4], 12),
        ("F32", [2], 12),
        ("F99", [1], 4),
        ("F32", [1.5], 4),
    ],
)
def test_what_torch_does_not_read_is_refused_too(tmp_path, dtype, shape, size):
    entries = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    path = write(tmp_path / "x.safetensors", entries, bytes(size))
    for read in (read_safetensors, read_stored, digest_safetensors):
        with pytest.raises(CorruptFileError, match=r"x\.safetensors: is not a readable safetensors file \("):
            read(path)


def test_a_cut_an_empty_and_no_file_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(MissingFileError):
        read_stored(path)
    save_file({"x": torch.ones(100)}, path)
    whole = path.read_bytes()
    for stop in (0, 7, 20, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(CorruptFileError, match="is not a readable safetensors file"):
            read_stored(path)
    with pytest.raises(CorruptFileError, match="is a folder, not a file; name a safetensors file"):
        read_stored(tmp_path)
