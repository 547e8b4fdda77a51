"""What a reward server and its clients say to each other, version 1.

A request and its answer are safetensors bytes (`application/x-safetensors`), written and read here without a copy
of the images, and readable with the `safetensors` package:

1. A request is one tensor `images`, U8 [B, 3, H, W], RGB, B ≥ 1. An answer is one tensor `rewards`, F32 [B].
2. `__metadata__` has exactly one key, `rlcm`, whose value is canonical JSON (sorted keys, no spaces). Of a request:
   `prompts`, B texts, and `metadata`, B objects. Of an answer: `count` (B), `reward` (its name) and `revision`.
3. The header is followed by the tensor's bytes and by nothing else. It has at most `HEADER_BYTES`.

`revision` changes whenever the same request would be answered with other numbers: scores of two revisions are
never mixed. Nothing is ever pickled.
"""

from __future__ import annotations

import itertools
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcm_cli.rewards.http.quoting import quote_foreign

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
MEDIA_TYPE = "application/x-safetensors"
TOKEN_VARIABLE = "RLCM_REWARD_TOKEN"  # noqa: S105
METADATA_KEY = "rlcm"
HEADER_BYTES = 16 * 2**20
"""The longest header that is parsed: prompts and metadata of a thousand images have one or two megabytes."""

_MOST_EXTENTS = 4

Metadata = Sequence[Mapping[str, object]]
Buffer = bytes | bytearray | memoryview


class ProtocolError(ValueError):
    """Bytes that do not follow the protocol; the message says in one line where."""


@dataclass(frozen=True)
class Batch:
    """Images to score.

    Attributes:
        images: uint8 [B, 3, H, W], RGB; may be a view of a request's bytes.
        prompts: B prompts.
        metadata: B mappings.
    """

    images: np.ndarray[Any, Any]
    prompts: Sequence[str]
    metadata: Metadata

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)


@dataclass(frozen=True)
class Answer:
    """Rewards of a batch.

    Attributes:
        rewards: float32 [B]; not checked for NaN.
        reward: The reward's name on the server.
        revision: What gave the rewards.
    """

    rewards: np.ndarray[Any, Any]
    reward: str
    revision: str


def encode_batch(batch: Batch) -> tuple[bytes, memoryview]:
    """Return the two parts of a request: its header, and a view of the images' bytes.

    Raises:
        ProtocolError: If the metadata is not plain JSON.
    """
    return _encode("images", "U8", batch.images, {"prompts": batch.prompts, "metadata": batch.metadata})


def decode_batch(body: Buffer) -> Batch:
    """Read a request; its images are a view of `body`. Raises `ProtocolError`."""
    import numpy as np

    shape, data, record = _decode(body, "images", "U8", 1)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise ProtocolError(f"images have the shape {shape}, not [B, 3, H, W] with B, H and W at least 1")
    if set(record) != {"prompts", "metadata"}:
        raise ProtocolError(f"the metadata holds {_listed(record)}, not prompts and metadata")
    prompts, metadata = record["prompts"], record["metadata"]
    check_rows(shape[0], prompts, metadata)
    return Batch(np.frombuffer(data, np.uint8).reshape(shape), prompts, metadata)


def encode_answer(answer: Answer) -> bytes:
    """Return the bytes of an answer."""
    count = len(answer.rewards)
    record = {"count": count, "reward": answer.reward, "revision": answer.revision}
    head, data = _encode("rewards", "F32", answer.rewards, record)
    return head + data


def decode_answer(body: Buffer) -> Answer:
    """Read an answer. Raises `ProtocolError`."""
    import numpy as np

    shape, data, record = _decode(body, "rewards", "F32", 4)
    if shape != [record.get("count")]:
        raise ProtocolError(f"rewards have the shape {shape}, the count is {reprlib.repr(record.get('count'))}")
    if not isinstance(record.get("reward"), str) or not isinstance(record.get("revision"), str):
        raise ProtocolError("it names no reward and revision")
    return Answer(np.frombuffer(data, "<f4").astype(np.float32), record["reward"], record["revision"])


def check_rows(count: int, prompts: object, metadata: object) -> None:
    """Raise `ProtocolError` unless there is one text and one mapping per image."""
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ProtocolError("prompts is not a list of texts")
    if not isinstance(metadata, list) or not all(isinstance(known, dict) for known in metadata):
        raise ProtocolError("metadata is not a list of objects")
    if not len(prompts) == len(metadata) == count:
        raise ProtocolError(f"{count} images came with {len(prompts)} prompts and {len(metadata)} metadata")


def _encode(name: str, dtype: str, array: np.ndarray[Any, Any], record: Any) -> tuple[bytes, memoryview]:
    try:
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"the metadata is not plain JSON ({error})") from error
    data = array.reshape(-1).view("u1").data  # of an array whose rows lie one behind the other, no copy
    header = json.dumps(
        {
            "__metadata__": {METADATA_KEY: text},
            name: {"dtype": dtype, "shape": list(array.shape), "data_offsets": [0, data.nbytes]},
        },
        ensure_ascii=False,
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, data


def _decode(body: Buffer, name: str, dtype: str, item_bytes: int) -> tuple[list[int], memoryview, dict[str, Any]]:
    """Return the shape and the bytes of the only tensor, and the record in the metadata."""
    view = memoryview(body)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > len(view) - 8:
        raise ProtocolError("the body is not a safetensors file, or is cut off")
    if length > HEADER_BYTES:
        raise ProtocolError(f"the header has {length} bytes, more than {HEADER_BYTES}; send fewer images at a time")
    header = _parse_object(view[8 : 8 + length], "the safetensors header")
    data = view[8 + length :]
    if set(header) != {"__metadata__", name}:
        raise ProtocolError(f"the body holds {_listed(header)}, not __metadata__ and {name}")
    entry, metadata = header[name], header["__metadata__"]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ProtocolError(f"{name} has no dtype, shape and data_offsets")
    found = entry["dtype"] if isinstance(entry["dtype"], str) else type(entry["dtype"]).__name__
    if found != dtype:
        raise ProtocolError(f"{name} is {quote_foreign(str(found), longest=40)}, not {dtype}")
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ProtocolError(f"{name} has no shape of whole numbers")
    # Before anything is multiplied: the product of a thousand numbers of a thousand digits takes minutes.
    if len(shape) > _MOST_EXTENTS or any(extent > len(view) for extent in shape):
        raise ProtocolError(f"{name} has a shape that does not fit its {len(data)} bytes")
    size = item_bytes * math.prod(shape)
    if entry["data_offsets"] != [0, size] or len(data) != size:
        raise ProtocolError(f"{name} should have {size} bytes by its shape {shape}, and {len(data)} are there")
    if (
        not isinstance(metadata, dict)
        or set(metadata) != {METADATA_KEY}
        or not isinstance(metadata[METADATA_KEY], str)
    ):
        raise ProtocolError(f"__metadata__ does not have the one key {METADATA_KEY} with JSON in it")
    return shape, data, _parse_object(metadata[METADATA_KEY].encode(), "the metadata")


def _parse_object(data: Buffer, what: str) -> dict[str, Any]:
    try:
        value = json.loads(bytes(data), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise ProtocolError(f"{what} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} is not a JSON object")
    return value


def _listed(table: Mapping[str, object]) -> str:
    """Name the first few keys of a table, which may have millions."""
    first = sorted(itertools.islice(table, 5))
    return f"[{', '.join(quote_foreign(repr(key), longest=40) for key in first)}{', …' if len(table) > 5 else ''}]"


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not a JSON number")
