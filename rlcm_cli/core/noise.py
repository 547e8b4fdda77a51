"""Randomness that belongs to a sample: the same noise on any device, in any batch, on any worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(run_seed: int, purpose: str, *position: int) -> int:
    """Give a seed in [0, 2⁶³) that depends on all arguments: the head of a SHA-256.

    `purpose` (train, eval, …) keeps two uses of the same numbers apart.
    """
    text = "/".join([str(run_seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draw_noise(seeds: Sequence[int], calls: int, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise, float32 [B, calls, *shape] on the CPU, from one generator a sample.

    Row b equals what diffusers draws from `torch.Generator("cpu").manual_seed(seeds[b])` for the initial
    latents (call 0) and then for each re-noising step.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        rows.append(torch.stack([torch.randn(tuple(shape), generator=generator) for _ in range(calls)]))
    return torch.stack(rows)
