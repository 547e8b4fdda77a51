"""What is chosen of a model when it is loaded, and makes other images: their size, fewer bits, decoding in tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.memory import digest_tiled, tile_decoding
from rlcm_cli.models.quantised import check_quantisation, digest_quantised, quantise_denoiser
from rlcm_cli.sections import Quantization


@dataclass(frozen=True)
class Variant:
    """How a model is loaded."""

    image_size: tuple[int, int] | None = None
    """(height, width) in pixels, None for the pipeline's own."""
    quantize: Quantization | None = None
    """How many bits the weights of the denoiser's linear layers have, a fused LoRA among them; None: those of the
    dtype."""
    tiled_decoding: bool = False
    """Large images are decoded in tiles."""
    shard: Callable[[torch.nn.Module, torch.device], None] | None = None
    """Moves a part of the denoiser's weights to a device, where other processes have the rest; None: all are moved."""

    def check(self, place: torch.device) -> None:
        """Raise `ModelError` for what cannot be done on a device."""
        if self.quantize is not None:
            check_quantisation(self.quantize, place)

    def digest(self, digest: str) -> str:
        """Return the digest of a model that is loaded so, of the one that has all bits and decodes whole images."""
        return digest_tiled(digest_quantised(digest, self.quantize), self.tiled_decoding)


def place_denoiser(model: LatentModel, variant: Variant) -> None:
    """Move the denoiser from the CPU to the model's device, and make the model smaller. Raises `ModelError`."""
    if variant.quantize is not None:
        quantise_denoiser(model, variant.quantize)
    elif variant.shard is not None:
        variant.shard(model.denoiser, model.device)
        model.sharded = True
    else:
        with quiet_libraries():
            model.denoiser.to(model.device)
    if variant.tiled_decoding:
        tile_decoding(model)
