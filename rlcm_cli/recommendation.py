"""How a model recommends to be sampled, unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recommendation:
    """The sampling that a model was made for."""

    sampler: str
    """Kind of the sampler."""
    steps: int
    """Model calls per image, outside of training."""
    guidance_scale: float
    """As in diffusers' pipelines, outside of training."""
    drawing: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler outside of training that are not its own usual ones."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings that a run takes with such a model unless the user says otherwise, by their dotted keys, such as
    sample.steps and sampler.eta."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels; None: the size that the pipeline's own configurations state."""
    source: str = ""
    """Who says so, such as a model card; empty: nobody in particular, these are the defaults of its family."""
