"""Weights in a folder of the hub's layout: which files they are, and what a library reports of loading them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcm_cli.foreign.faults import ForeignError
from rlcm_cli.foreign.folders import check_index, check_regular

PLAIN = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}
"""Types of weights and of buffers such as positions and counters; others are quantised."""
PREFERRED_VARIANTS = ("fp16", "bf16", "fp32")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def find_weights(folder: Path, stem: str) -> tuple[str | None, list[Path]]:
    """Return the variant to load of the weights in a folder, and its files.

    Args:
        folder: That of one model, or of one component of a pipeline.
        stem: Name of a weights file before its variant and its ending, such as `model`.

    Raises:
        ForeignError: If there is no safetensors file, or an index names a file that is not next to it.
    """
    found: dict[str | None, list[Path]] = {}
    if not folder.is_dir():
        raise ForeignError(f"its folder {folder.name} is missing")
    for file in sorted(folder.iterdir()):
        if not file.name.startswith(f"{stem}."):
            continue
        variant = variant_of(file.name, stem)
        if SHARD.search(file.name):  # of a variant: its index names it
            continue
        if file.name.endswith(".safetensors"):
            check_regular(file)
            found[variant] = [file]
        elif ".safetensors.index" in file.name and file.suffix == ".json":
            found.setdefault(variant, check_index(file))
    if found:
        variant = choose_variant(list(found), f"{folder.name}/{stem}")
        return variant, found[variant]
    shards = sorted(file.name for file in folder.glob(f"{stem}*.safetensors") if SHARD.search(file.name))
    if shards:
        raise ForeignError(f"{folder.name} holds {shards[0]} without its index, {stem}.safetensors.index.json")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ForeignError(
            f"{folder.name} holds its weights only as a pickle ({pickles[0]}), which is not read as it could run "
            "code; convert it to safetensors where you trust it"
        )
    raise ForeignError(f"{folder.name} holds no safetensors weights ({stem}.safetensors)")


def choose_variant(variants: list[str | None], what: str) -> str | None:
    """Choose the weights to load. Raises `ForeignError` where only several of unknown kinds are there."""
    if None in variants:
        return None
    for name in PREFERRED_VARIANTS:
        if name in variants:
            return name
    if len(variants) > 1:
        raise ForeignError(f"{what} is there in the variants {', '.join(map(str, sorted(map(str, variants))))} only")
    return variants[0]


def variant_of(file: str, stem: str) -> str | None:
    """Return `fp16` of STEM.fp16.safetensors, STEM.fp16-00001-of-00002.safetensors or an index of such; else None."""
    rest = file.removeprefix(stem).replace(".safetensors", "").replace(".index", "").removesuffix(".json")
    return rest.lstrip(".").partition("-0")[0] or None


def check_tensors(file: Path) -> None:
    """Raise `ForeignError` unless a file is whole, and its tensors are numbers as a model computes with."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            kinds = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ForeignError(f"{file.parent.name}/{file.name} is damaged or not safetensors ({error})") from None
    for key, kind in kinds.items():
        if kind not in PLAIN:
            raise ForeignError(
                f"{file.parent.name}/{file.name} stores {key} as {kind}, so that it is quantised, and config.json "
                "does not say how"
            )


def check_report(report: Mapping[str, Any]) -> None:
    """Raise `ForeignError` where a network was completed with random numbers, which the libraries only log.

    Args:
        report: What `from_pretrained(output_loading_info=True)` of diffusers or transformers returns.
    """
    if report["missing_keys"]:
        first, *others = sorted(report["missing_keys"])
        raise ForeignError(f"lack {first}{f' and {len(others)} more' if others else ''}")
    if report["mismatched_keys"]:
        key = min(str(entry[0] if isinstance(entry, tuple | list) else entry) for entry in report["mismatched_keys"])
        raise ForeignError(f"have {key} in another shape than its config.json says")
