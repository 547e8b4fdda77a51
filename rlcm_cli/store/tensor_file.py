"""Read a safetensors file without torch: what its header says of each tensor, and the bytes of it."""

from __future__ import annotations

import builtins
import math
import mmap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from rlcm_cli.errors import CorruptFileError, ModelError
from rlcm_cli.store.reading import open_file, parse_json

LARGEST_HEADER = 64 << 20
"""Bytes of the header of a safetensors file; that of an iteration's shard has some kilobytes."""
NO_TENSORS = "name a safetensors file"
"""What to do where something else than a file lies in its place."""

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
"""What torch calls the dtypes of safetensors."""

FLOAT8 = {
    "F8_E4M3": (3, 7, (0x7F, 0xFF)),
    "F8_E4M3FNUZ": (3, 8, (0x80,)),
    "F8_E5M2": (2, 15, (*range(0x7C, 0x80), *range(0xFC, 0x100))),
    "F8_E5M2FNUZ": (2, 16, (0x80,)),
}
"""Dtype → bits of the mantissa, bias of the exponent, codes that are not finite (arXiv 2209.05433 and 2206.02915)."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file, with those of a torch tensor's methods that reading a LoRA needs."""

    path: Path
    """The file."""
    dtype: str
    """As safetensors names it, a key of `DTYPES`."""
    shape: tuple[int, ...]
    """As torch has it."""
    data: memoryview
    """The bytes, row by row, little-endian."""

    @property
    def ndim(self) -> int:
        """Number of extents."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    def float(self) -> np.ndarray:
        """Return the values, float32 [numel]. Raises `ModelError` for dtypes that no LoRA is known to have."""
        with np.errstate(over="ignore"):  # as torch does, of a float64
            return self._values().astype(np.float32)

    def __float__(self) -> builtins.float:
        """Return the value, of a tensor that has one."""
        return builtins.float(self._values().item())

    def _values(self) -> np.ndarray:
        if self.dtype == "BF16":  # the upper half of a float32
            return (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        if self.dtype in FLOAT8:
            return _decode_float8(*FLOAT8[self.dtype])[np.frombuffer(self.data, np.uint8)]
        if self.dtype in ("C64", "F8_E8M0", "F4"):
            raise ModelError(f"{self.path}: holds values of the type {self.dtype}, not a LoRA's; save it in float16")
        return np.frombuffer(self.data, np.dtype(DTYPES[self.dtype]).newbyteorder("<"))


def _decode_float8(mantissa_bits: int, bias: int, not_finite: Collection[int]) -> np.ndarray:
    """Return the value of each of the 256 codes, float32; NaN for what is not finite."""
    values = []
    for code in range(256):
        exponent, mantissa = divmod(code & 0x7F, 1 << mantissa_bits)
        whole = mantissa + (1 << mantissa_bits if exponent else 0)
        value = math.ldexp(whole, max(exponent, 1) - bias - mantissa_bits)
        values.append(math.nan if code in not_finite else -value if code & 0x80 else value)
    return np.array(values, np.float32)


def read_stored(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str] | None]:
    """Read the tensors of a safetensors file, which stay on the disk until they are used, and its metadata.

    Raises `CorruptFileError`, and the errors of `open_file`.
    """
    with open_file(path, NO_TENSORS) as file:
        try:
            with safetensors.safe_open(path, framework="np") as opened:  # checks the header, the offsets among it
                metadata = opened.metadata()
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header, start = parse_header(data)
            view = memoryview(data)[start:]
            tensors = {name: _find(path, entry, view) for name, entry in header.items() if name != "__metadata__"}
        except (safetensors.SafetensorError, ValueError) as error:
            raise CorruptFileError(f"{path}: is not a readable safetensors file ({error})") from None
    return tensors, metadata


def parse_header(data: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """Parse the header of a safetensors file; return it, and where the data begin. Raises `ValueError`."""
    size = int.from_bytes(data[:8], "little")
    if size > min(LARGEST_HEADER, len(data)):
        raise ValueError("longer than the file")
    return parse_json(data[8 : 8 + size]), 8 + size


def _find(path: Path, entry: Mapping[str, Any], data: memoryview) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in DTYPES:
        raise ValueError(f"Dtype not understood: {dtype}")
    if any(extent >= 2**63 for extent in shape):
        raise ValueError("an extent has more than 63 bits")
    if dtype == "F4":  # two of which are one element to torch
        if shape[-1] % 2:
            raise ValueError(f"f4_x2 dtype requires that the last dim be divisible by 2 in torch: got {list(shape)}")
        shape = (*shape[:-1], shape[-1] // 2)
    start, stop = entry["data_offsets"]
    return StoredTensor(path, dtype, shape, data[start:stop])
