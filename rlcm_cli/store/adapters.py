"""LoRA files: where they are, and what rank, alpha and modules their metadata states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlcm_cli.errors import ModelError
from rlcm_cli.store.checkpoint import LORA_FILE, find_weights, latest_checkpoint
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.objects import is_url
from rlcm_cli.store.remote import fetch_adapter

DIFFUSERS_METADATA_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class AdapterSettings:
    """What a LoRA's metadata says of it."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]


def find_adapter(place: str) -> Path | None:
    """Find the LoRA file of a run (its newest checkpoint), a checkpoint folder or a file; None: no such path or URL.

    Where the U-Net itself was trained, its file. Raises `ModelError` where the path is there but holds neither.
    """
    path = fetch_adapter(place) if is_url(place) else Path(place)
    if path.is_file():
        return path
    if not path.is_dir():
        return None
    if (path / "checkpoints").is_dir():
        layout = RunLayout(path)
        path = layout.checkpoint(latest_checkpoint(layout))
    file = find_weights(path)
    # A whole pipeline has a U-Net as well, which nobody trained.
    if file is not None and not (path / "model_index.json").is_file():
        return file
    raise ModelError(f"{place}: holds no LoRA; name a run, a checkpoint folder with {LORA_FILE}, or a LoRA file")


def read_adapter_settings(path: Path) -> AdapterSettings:
    """Read rank, alpha and modules from the metadata that diffusers writes.

    Raises `ModelError` for a file without it: its alpha is unknown, and guessing halves or doubles the effect.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata = json.loads(header["__metadata__"][DIFFUSERS_METADATA_KEY])
        return AdapterSettings(
            metadata["unet.r"], metadata["unet.lora_alpha"], tuple(sorted(metadata["unet.target_modules"]))
        )
    except (ValueError, KeyError, TypeError, OSError, MemoryError, OverflowError):
        raise ModelError(
            f"{path}: states no rank and alpha ('{DIFFUSERS_METADATA_KEY}' of diffusers' save_lora_weights); "
            "start from a LoRA that rlcm or a current diffusers wrote"
        ) from None
