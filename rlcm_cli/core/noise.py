"""Randomness that belongs to a sample: the same noise on any device, in any batch, on any worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STATE_WORDS = slice(3, 3 + 624)
"""Where the 624 words of the Mersenne Twister stand in the state of torch's CPU generator, seen as int64."""


def derive_seed(run_seed: int, purpose: str, *position: int) -> int:
    """Return a seed in [0, 2⁶³) that depends on all arguments: the head of a SHA-256.

    `purpose` (train, eval, …) keeps two uses of the same numbers apart.
    """
    text = "/".join([str(run_seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_generator(seed: int) -> torch.Generator:
    """Return a CPU generator that depends on all bits of a seed in [0, 2⁶⁴).

    `torch.Generator.manual_seed` takes the low 32 bits only, so that 5 and 5 + 2³² would draw the same. A seed below
    2³² is seeded by it, as in diffusers. A larger one is seeded with both of its halves, the low one first, by the
    `init_by_array` of the Mersenne Twister (Matsumoto and Nishimura, 2002), as `numpy.random.RandomState` is.
    """
    high, low = divmod(seed, 2**32)
    generator = torch.Generator("cpu").manual_seed(low)
    if high:
        # Fresh from `manual_seed`, the generator makes its first numbers from these words.
        state = generator.get_state()
        words = np.random.RandomState([low, high]).get_state(legacy=False)["state"]["key"]
        state.view(torch.int64)[STATE_WORDS] = torch.from_numpy(words.astype(np.int64))
        generator.set_state(state)
    return generator


def draw_noise(seeds: Sequence[int], calls: int, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise, float32 [B, calls, *shape] on the CPU, from one generator a sample.

    Row b equals what diffusers draws from `seed_generator(seeds[b])`, below 2³² the same as
    `torch.Generator("cpu").manual_seed(seeds[b])`, for the initial latents (call 0) and then for each re-noising step.
    """
    rows = []
    for seed in seeds:
        generator = seed_generator(seed)
        rows.append(torch.stack([torch.randn(tuple(shape), generator=generator) for _ in range(calls)]))
    return torch.stack(rows)
