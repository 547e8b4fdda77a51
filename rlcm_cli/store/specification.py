"""Rules 7 to 9 of the run directory's format as tables: the fields and tensors of each kind of record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Kind = Literal["rollout", "rewards", "evaluation", "rescored"]


class Fields(BaseModel):
    """Metadata of a record. A reader ignores fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class RolloutFields(Fields):
    """Of a shard."""

    plan: str
    prompts: list[str]
    tasks: list[str]


class RewardIdentity(Fields):
    """What gave the rewards."""

    name: str
    settings: dict[str, Any]
    digest: str
    revision: str


class RewardsFields(Fields):
    """Of the rewards of a shard."""

    plan: str
    shard_sha256: str
    reward: RewardIdentity


class EvaluationFields(Fields):
    """Of an evaluation."""

    run: str
    checkpoint: int
    policy_digest: str
    prompts: list[str]
    tasks: list[str]
    revisions: dict[str, str]


class RescoredFields(Fields):
    """Of later rewards of an evaluation."""

    checkpoint: int
    evaluation_sha256: str
    revisions: dict[str, str]


FIELDS: Mapping[str, type[Fields]] = {
    "rollout": RolloutFields,
    "rewards": RewardsFields,
    "evaluation": EvaluationFields,
    "rescored": RescoredFields,
}
FLOAT = ("F64", "F32", "F16", "BF16")
ANY = (*FLOAT, "I64", "I32", "U8", "BOOL")
TENSORS: Mapping[str, Mapping[str, tuple[tuple[str, ...], str]]] = {
    "rollout": {
        "latents": (FLOAT, "B S C h w"),
        "log_probs": (("F32",), "B A"),
        "timesteps": (("I64", "F64"), "A 2"),
        "final_latents": (FLOAT, "B C h w"),
        "images": (("U8",), "B 3 H W"),
        "sample_index": (("I64",), "B"),
        "group_id": (("I64",), "B"),
        "member": (("I64",), "B"),
        "seed": (("I64",), "B"),
        "prompt_index": (("I64",), "B"),
        "task_index": (("I64",), "B"),
        "conditioning.*": (ANY, "U …"),
        "conditioning_index.*": (("I64",), "B"),
    },
    "rewards": {"sample_index": (("I64",), "B"), "reward": (("F32",), "B")},
    "evaluation": {
        "images": (("U8",), "B 3 H W"),
        "prompt_index": (("I64",), "B"),
        "task_index": (("I64",), "B"),
        "seed": (("I64",), "B"),
        "held_out": (("U8",), "B"),
        "reward.*": (("F32",), "B"),
    },
    "rescored": {"seed": (("I64",), "B"), "reward.*": (("F32",), "B")},
}
"""Kind → tensor → dtypes as safetensors names them, and extents: a letter has the same size throughout a record."""

OPTIONAL: Mapping[str, frozenset[str]] = {"rollout": frozenset({"final_latents"})}
"""Kind → tensors that a record may lack."""


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


def find_fault(kind: Kind, fields: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return what in the header of a record is not as its kind has it; None: nothing."""
    try:
        FIELDS[kind].model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"its field {'.'.join(map(str, first['loc']))} is missing or cannot be"
    sizes: dict[str, int] = {}
    needed = TENSORS[kind].keys() - OPTIONAL.get(kind, frozenset())
    absent = [name for name in TENSORS[kind] if name in needed and "*" not in name and name not in tensors]
    if absent:
        return f"it lacks the tensor {absent[0]}"
    for name, info in sorted(tensors.items()):
        known = TENSORS[kind].get(re.sub(r"(?<=\.).+", "*", name, count=1))
        if known is None:
            return f"it has a tensor {name[:80]!r}, which its kind has not"
        dtypes, extents = known
        if info.dtype not in dtypes:
            return f"its tensor {name[:80]} is {info.dtype}, not {' or '.join(dtypes)}"
        if not _fits(info.shape, extents.split(), sizes):
            return f"its tensor {name[:80]} has the shape {list(info.shape[:8])}, not [{extents.replace(' ', ', ')}]"
    if kind == "rollout":
        if not sizes["A"] + 1 <= sizes["S"] <= 2 * sizes["A"] + 1:
            return f"it has {sizes['S']} states and {sizes['A']} actions"
        if {_suffix(name) for name in tensors if name.startswith("conditioning.")} != {
            _suffix(name) for name in tensors if name.startswith("conditioning_index.")
        }:
            return "its conditioning and the indices of it have other names"
        for name, info in sorted(tensors.items()):
            if name.startswith("conditioning.") and info.shape[0] != len(fields["prompts"]):
                return f"its {name[:80]} has not a row for each prompt"
    return None


def find_wrong_value(kind: Kind, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> str | None:
    """Return which index of a record, whose header is right, points to nothing; None: none does."""
    limits: dict[str, int] = {}
    if kind in ("rollout", "evaluation"):
        limits = {"prompt_index": len(fields["prompts"]), "task_index": len(fields["tasks"])}
    for name in tensors:
        if name.startswith("conditioning_index."):
            limits[name] = len(fields["prompts"])
    for name, limit in limits.items():
        if len(tensors[name]) and not 0 <= int(tensors[name].min()) <= int(tensors[name].max()) < limit:
            return f"its tensor {name} has values outside of 0 to {limit - 1}"
    if kind == "evaluation" and len(tensors["held_out"]) and int(tensors["held_out"].max()) > 1:
        return "its tensor held_out has values other than 0 and 1"
    return None


def _fits(shape: tuple[int, ...], extents: list[str], sizes: dict[str, int]) -> bool:
    if extents[-1] == "…":
        shape, extents = shape[:1], extents[:-1]
    return len(shape) == len(extents) and all(
        size == (int(extent) if extent.isdigit() else sizes.setdefault(extent, size))
        for size, extent in zip(shape, extents, strict=True)
    )


def _suffix(name: str) -> str:
    return name.partition(".")[2]
