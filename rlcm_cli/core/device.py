"""The device that a setting names."""

from __future__ import annotations

import torch

from rlcm_cli.errors import ModelError


def select_device(device: str) -> torch.device:
    """Turn `auto` into CUDA, MPS or the CPU, whichever is there first. Raises `ModelError` for an absent one."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        raise ModelError(
            f"device '{device}' is not there for this torch ({torch.__version__}); use --device cpu, or auto"
        ) from None
    return chosen
