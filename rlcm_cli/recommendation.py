"""How a model recommends to be sampled, unless the user says otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recommendation:
    """The sampling that a model was made for."""

    sampler: str
    """Kind of the sampler."""
    steps: int
    """Model calls per image, outside of training."""
    guidance_scale: float
    """As in diffusers' pipelines, outside of training."""
