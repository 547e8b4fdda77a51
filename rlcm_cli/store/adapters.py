"""LoRA files: where they are, and what rank, alpha and modules their metadata states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlcm_cli.core.lora_file import DENOISERS, METADATA_KEY, PartSettings, read_settings
from rlcm_cli.errors import CorruptFileError, MissingFileError, ModelError
from rlcm_cli.store.checkpoint import LORA_FILE, MARKER_FILE, find_weights, latest_checkpoint, read_trainer_state
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.reading import open_file
from rlcm_cli.store.remote.objects import is_url
from rlcm_cli.store.remote.remote_run import fetch_adapter


@dataclass(frozen=True)
class AdapterSettings:
    """What a LoRA's metadata says of it."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]


def find_adapter(place: str) -> Path | None:
    """Find the LoRA file of a run (its newest checkpoint), a checkpoint folder or a file; None: no such path or URL.

    Where the denoiser itself was trained, its file. Raises `ModelError` where the path is there but holds neither.
    """
    path = fetch_adapter(place) if is_url(place) else Path(place)
    if path.is_file():
        _check_checkpoint_of(path)
        return path
    if not path.is_dir():
        return None
    if (path / "checkpoints").is_dir():
        layout = RunLayout(path)
        path = layout.checkpoint(latest_checkpoint(layout))
    file = find_weights(path)
    # A whole pipeline has a denoiser as well, which nobody trained.
    if file is not None and not (path / "model_index.json").is_file():
        _check_checkpoint_of(file)
        return file
    raise ModelError(f"{place}: holds no LoRA; name a run, a checkpoint folder with {LORA_FILE}, or a LoRA file")


def _check_checkpoint_of(file: Path) -> None:
    """Check the checkpoint that weights are of, where they lie in one of a run. Raises as `read_trainer_state`."""
    for folder in file.absolute().parents[:3]:  # in the folder of an average that of a denoiser is the third
        number = re.fullmatch(r"\d{6,9}", folder.name, re.ASCII)
        if number and folder.parent.name == "checkpoints" and (folder / MARKER_FILE).exists():
            read_trainer_state(RunLayout(folder.parent.parent), int(number[0]))


def read_adapter_settings(path: Path) -> AdapterSettings:
    """Read rank, alpha and modules from the metadata that diffusers writes, for a run that starts from the file.

    Raises `ModelError` for a file without them, since guessing alpha halves or doubles the effect, and for a LoRA that
    is not what these three numbers say: with strengths or ranks of its own for some modules, or more than two matrices
    a module.
    """
    names, metadata = _read_header(path)
    denoiser = _find_denoiser(names)
    stated = read_settings(metadata, denoiser, str(path))
    if stated is None:
        raise ModelError(
            f"{path}: states no rank and alpha ('{METADATA_KEY}' of diffusers' save_lora_weights); {EXPORT_IT}"
        )
    fault = _find_fault(stated, denoiser, names)
    if fault:
        raise ModelError(f"{path}: {fault}")
    return AdapterSettings(stated.rank, int(stated.alpha), stated.target_modules or ())


EXPORT_IT = "to start from it, write it again by `rlcm export FILE --model NAME --format diffusers`"


def _find_denoiser(names: Sequence[str]) -> str:
    """Return the name of the denoiser that the tensors of a LoRA's file are of."""
    return next((part for part in DENOISERS if any(name.startswith(f"{part}.") for name in names)), DENOISERS[0])


def _find_fault(stated: PartSettings, denoiser: str, names: Sequence[str]) -> str | None:
    """Return why a run, which has one rank and one whole alpha, cannot start from a LoRA."""
    if any(not name.startswith(f"{denoiser}.") for name in names):
        return (
            "has layers of other parts than the denoiser, which a run does not train; start from a LoRA of the "
            "denoiser only"
        )
    if any("lora_magnitude_vector" in name or name.endswith(".bias") for name in names):
        return "is a DoRA, or has biases, which a run does not train; start from a plain LoRA"
    if stated.rank_pattern:
        return "has modules of several ranks (rank_pattern), and a run has one; start from a LoRA of one rank"
    if stated.rslora:
        return f"has the strength alpha / sqrt(rank) (use_rslora), and a run's is alpha / rank; {EXPORT_IT}"
    if stated.alpha_pattern:
        return f"has modules of several alphas (alpha_pattern), and a run has one; {EXPORT_IT}"
    if stated.alpha != int(stated.alpha):
        return f"has an alpha of {stated.alpha:g}, and a run's is a whole number; {EXPORT_IT}"
    if stated.target_modules is None:
        return f"names its modules by a pattern, and a run by a list; {EXPORT_IT}"
    return None


def _read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the tensors, and the metadata."""
    try:
        with open_file(path, "name a LoRA file"), safe_open(path, framework="np") as opened:
            return list(opened.keys()), opened.metadata() or {}
    except (OSError, SafetensorError, MissingFileError, CorruptFileError):
        raise ModelError(f"{path}: is not a readable safetensors file; name a LoRA file") from None
