"""Text encoders that are in memory only while prompts are encoded: many are larger than the denoiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from rlcm_cli.families import Family
from rlcm_cli.models.fingerprint import modules_of


def encoders_of(pipeline: Any, family: Family) -> tuple[str, ...]:
    """Return the components that read prompts, those that a pipeline of a family has."""
    libraries = family.loading.components
    return tuple(part for part in modules_of(pipeline, family) if libraries[part] == "transformers")


class AbsentEncoders:
    """The text encoders of a pipeline that are loaded when they are needed, and not kept.

    While they are absent, the pipeline has modules of the same configurations in their places, without weights.
    """

    def __init__(self, pipeline: Any, family: Family, load: Callable[[str], torch.nn.Module]) -> None:
        """Take a pipeline whose text encoders have no weights; `load` loads one by its name, to the device."""
        self._pipeline, self._load = pipeline, load
        self._empty = {part: getattr(pipeline, part) for part in encoders_of(pipeline, family)}

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Let the pipeline have them within the block. Raises `ModelError` where they cannot be loaded."""
        try:
            self.bring_back()
            yield
        finally:
            self.free()

    def bring_back(self) -> None:
        """Put them into the pipeline for good. Raises `ModelError` where they cannot be loaded."""
        for part in self._empty:
            setattr(self._pipeline, part, self._load(part))

    def free(self) -> None:
        """Take them out of the pipeline."""
        for part, module in self._empty.items():
            setattr(self._pipeline, part, module)
