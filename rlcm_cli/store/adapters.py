"""LoRA files: what rank, alpha and modules their metadata states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlcm_cli.core.lora_file import DENOISERS, METADATA_KEY, PartSettings, read_lora_settings
from rlcm_cli.errors import CorruptFileError, MissingFileError, ModelError
from rlcm_cli.store.reading import open_file


@dataclass(frozen=True)
class AdapterSettings:
    """What a LoRA's metadata says of it."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]


def read_adapter_settings(path: Path) -> AdapterSettings:
    """Read rank, alpha and modules from the metadata that diffusers writes, for a run that starts from the file.

    Raises `ModelError` for a file without them, since guessing alpha halves or doubles the effect, and for a LoRA that
    is not what these three numbers say: with strengths or ranks of its own for some modules, or more than two matrices
    a module.
    """
    names, metadata = _read_header(path)
    denoiser = _find_denoiser(names)
    stated = read_lora_settings(metadata, denoiser, str(path))
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
