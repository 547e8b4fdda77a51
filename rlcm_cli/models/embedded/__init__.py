"""Pipelines that the package carries, so that the first run needs no download."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = ("emoji-lcm", "emoji-diffusion")

RECOMMENDED_GUIDANCE = {"emoji-lcm": 4.0, "emoji-diffusion": 4.0}
"""Guidance scale, as in diffusers, at which a model was found to draw best (its card tells)."""

RECOMMENDED_STEPS = {"emoji-diffusion": 20}
"""DDIM steps from which on more did not help (its card tells)."""


def embedded_folder(name: str) -> Path | None:
    """Return the folder of an embedded pipeline; None for any other name."""
    return Path(__file__).parent / name if name in EMBEDDED else None
