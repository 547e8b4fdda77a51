"""Pipelines of known architectures with random weights: of the real size, for measuring, with nothing to download.

The numbers are those of the configurations that the models are published with, and stand with each family. Only the
tokenizer is another, the embedded model's: with token ids of its own, and sequences of the same 77.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.families import FAMILIES, Architecture, Family
from rlcm_cli.models.embedded import embedded_folder
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import DTYPES, freeze_pipeline, load_model

RANDOM: Mapping[str, tuple[Family, Architecture]] = {
    name: (family, architecture) for family in FAMILIES.values() for name, architecture in family.architectures.items()
}
ARCHITECTURES = ("emoji-lcm", *RANDOM)
"""The embedded model, which has its own weights, and those that are made of random ones."""
TOKENS = 77


def build_architecture(
    name: str, *, dtype: str, device: str, image_size: tuple[int, int] | None = None
) -> LatentModel:
    """Build a model of a known architecture, frozen and in eval mode, like those of `load_model`.

    `image_size`: (height, width) in pixels; None for what it was published with. Raises `ModelError` for an unknown
    name or a size that the model cannot have.
    """
    if name not in ARCHITECTURES:
        raise ModelError(
            f"unknown architecture '{name}'; there are {', '.join(ARCHITECTURES)}; a pipeline's folder is given by "
            "--model"
        )
    if embedded_folder(name) is not None:
        return load_model(name, revision=None, dtype=dtype, device=device, image_size=image_size)
    place = select_device(device)
    family, architecture = RANDOM[name]
    with quiet_libraries():
        from transformers import CLIPTokenizer

        folder = f"{embedded_folder('emoji-lcm')}/tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
        with _made_there(place, DTYPES[dtype]):
            pipeline = architecture.build(tokenizer)
    freeze_pipeline(pipeline, family, place)
    digest = digest_json(["architecture", name, dtype])
    model = LatentModel(pipeline, family, architecture.sampler, place, DTYPES[dtype], digest)
    if image_size is not None:
        model.set_image_size(*image_size)
    return model


@contextlib.contextmanager
def _made_there(place: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make modules on their device, in their dtype and from one seed within the block: nothing is copied or cast."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), place:
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(previous)
