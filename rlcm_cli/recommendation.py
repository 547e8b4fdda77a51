"""How a model asks to be used, where a user says nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recommendation:
    """How a model is drawn by nature."""

    sampler: str
    """Kind of the sampler."""
    steps: int
    """Model calls of an image, outside of training."""
    guidance_scale: float
    """As in diffusers' pipelines, outside of training."""
