"""Which prompts are held out, and the order in which the others are drawn: only SHA-256 decides both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from rlcm_cli.errors import ConfigError


def split_prompts(prompts: Sequence[str], held_out_fraction: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Part a prompt set into prompts to train on and prompts to keep for evaluation.

    The prompts are ranked by the SHA-256 of their UTF-8 text and the first `held_out_fraction` of them,
    rounded and at least one unless the fraction is 0, are held out. Neither a run's seed nor the order of
    the source has a part in it, so runs over one set hold out the same prompts. Appending prompts to a
    source leaves the ranking of the old ones: of these, either none joins or none leaves the held-out part.

    Args:
        prompts: Distinct prompts.
        held_out_fraction: From 0 (nothing held out) to below 1.

    Returns:
        (training, held-out), both in the order of the source.

    Raises:
        ConfigError: If the fraction is out of range or leaves no prompt to train on.
    """
    if not 0 <= held_out_fraction < 1:
        raise ConfigError(f"held-out fraction {held_out_fraction} is out of range: give a number from 0 to below 1")
    count = max(1, round(held_out_fraction * len(prompts))) if held_out_fraction else 0
    if count >= len(prompts):
        raise ConfigError(
            f"held-out fraction {held_out_fraction} of {len(prompts)} prompt(s) leaves none to train on: "
            "lower the fraction (0 holds none out) or add prompts"
        )
    ranked = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    held_out = set(ranked[:count])
    return (
        tuple(prompt for prompt in prompts if prompt not in held_out),
        tuple(prompt for prompt in prompts if prompt in held_out),
    )


def draw_prompts(prompts: Sequence[str], seed: int, start: int, count: int) -> list[str]:
    """Return the prompts of groups `start` to `start + count - 1` of an endless sequence of shuffled passes.

    Each pass over the set is its own permutation: pass p holds groups p·N to p·N + N − 1 and orders the
    N prompts by SHA-256 of (seed, "prompts", p, prompt). Any slice can be computed by itself, by any worker, and
    is the same on every platform and Python version.

    Args:
        prompts: At least one prompt, all distinct.
        seed: The run's seed.
        start: Index of the first group, from 0.
        count: How many groups.
    """
    size = len(prompts)
    first_pass, offset = divmod(start, size)
    end_pass = -(-(start + count) // size)
    drawn = [
        prompt for pass_number in range(first_pass, end_pass) for prompt in _shuffled_pass(prompts, seed, pass_number)
    ]
    return drawn[offset : offset + count]


def _shuffled_pass(prompts: Sequence[str], seed: int, pass_number: int) -> list[str]:
    def rank(prompt: str) -> bytes:
        return hashlib.sha256(json.dumps([seed, "prompts", pass_number, prompt]).encode()).digest()

    return sorted(prompts, key=rank)
