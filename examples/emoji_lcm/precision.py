"""The precision that a model is trained in."""

from __future__ import annotations

import torch


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the device computes in it; a processor that emulates it is faster in float32."""
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    native = device.type != "cpu" or any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=native)
