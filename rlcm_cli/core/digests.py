"""SHA-256 digests of values and tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return sha256(canonical_json(value).encode())


def digest_tensors(tensors: Mapping[str, Tensor], metadata: Any = None) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names.

    For files whose bytes are not canonical: safetensors writes several metadata keys in random order.
    """
    return digest_contents(view_tensors(tensors), metadata)


def view_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Sequence[int], memoryview]]:
    """Yield tensors as `digest_contents` takes them, in the order of their names, one copied to the CPU at a time."""
    import torch  # here: whoever reads only plans and metrics does not wait for it

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield name, str(tensor.dtype), tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().data


def digest_contents(contents: Iterable[tuple[str, str, Sequence[int], memoryview]], metadata: Any = None) -> str:
    """Return what `digest_tensors` does, of names, torch's names of the dtypes (`torch.float32`), shapes and bytes.

    They are given in the order of their names.
    """
    digest = hashlib.sha256(canonical_json(metadata).encode())
    for name, dtype, shape, data in contents:
        digest.update(canonical_json([name, dtype, list(shape)]).encode())
        digest.update(data)
    return digest.hexdigest()
