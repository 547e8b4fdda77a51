"""The device that a setting names, and its memory."""

from __future__ import annotations

import gc

import torch

from rlcm_cli.errors import ModelError


def select_device(device: str) -> torch.device:
    """Turn `auto` into CUDA, MPS or the CPU, whichever is there first. Raises `ModelError` for an absent one.

    Of several GPUs, `cuda` is the current one, by its number: other threads have another current one.
    """
    if device == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        meant = " (did you mean 'cuda'?)" if device.lower() in ("gpu", "nvidia") else ""
        raise ModelError(
            f"device '{device}' is not available in this PyTorch build ({torch.__version__}){meant}; use "
            "--device cpu, or auto"
        ) from None
    return chosen


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions on CUDA be computed in TF32, or not, in this process.

    torch's own default lets convolutions: replayed transitions then miss float32's tolerance of the ratio.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def release_memory(device: torch.device) -> None:
    """Release the memory that nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
