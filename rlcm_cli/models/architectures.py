"""Pipelines of known architectures with random weights: of the real size, for measuring, with nothing to download.

The numbers are those of the configurations that the models are published with, and stand with each family. Text
encoders and tokenizers are left out: what a prompt is encoded to is random too.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json
from rlcm_cli.families import Family, LoadedPipeline
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import DTYPES, freeze_pipeline, load_model
from rlcm_cli.models.parts import MEASURED, find_architecture
from rlcm_cli.models.variant import Variant, place_denoiser
from rlcm_cli.samplers import find_sampler


def build_architecture(
    name: str,
    *,
    dtype: str,
    device: str,
    variant: Variant = Variant(),
) -> LatentModel:
    """Build a model of a known architecture, frozen and in eval mode, like those of `load_model`.

    It has no text encoder, and encodes a prompt to random numbers.

    Args:
        name: Of an architecture of a family, or the embedded model's.
        dtype: Of the weights.
        device: As `select_device` takes it, or `meta` for a model that has shapes and no memory.
        variant: The size of its images, None for the recommended one, or what it was published with; and what makes it
            smaller.

    Raises:
        ModelError: For an unknown name, or a size that the model cannot have.
    """
    if name == MEASURED:
        return load_model(
            name,
            revision=None,
            dtype=dtype,
            device=device,
            variant=variant,
        )
    family, architecture = find_architecture(name)
    place = select_device(device)
    with quiet_libraries(), made_there(place, DTYPES[dtype]):
        pipeline = architecture.build()
    freeze_pipeline(pipeline, family, place)
    found = architecture.recommendation
    model = LatentModel(
        pipeline,
        without_text(family),
        find_sampler(found.sampler),
        place,
        DTYPES[dtype],
        digest_json(["architecture", name, dtype]),
    )
    if size := variant.image_size or found.image_size:
        model.set_image_size(*size)
    place_denoiser(model, variant)
    return model


def build_text_encoders(name: str, *, dtype: str, device: str) -> Mapping[str, torch.nn.Module]:
    """Build the text encoders of an architecture with random weights, by the names of their components.

    Raises `ModelError` for an unknown name.
    """
    _, architecture = find_architecture(name)
    with quiet_libraries(), made_there(select_device(device), DTYPES[dtype]):
        return architecture.build_text_encoders()


@contextlib.contextmanager
def made_there(place: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make modules on their device, in their dtype and from one seed within the block: nothing is copied or cast."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), place:
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(previous)


def without_text(family: Family) -> Family:
    """Return the family with random numbers in the place of what its text encoders give."""

    def encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4]))
            return family.text.stand_in(model)

    return replace(family, text=replace(family.text, encode=encode, count_cut=lambda pipeline, prompts: (0, 0)))
