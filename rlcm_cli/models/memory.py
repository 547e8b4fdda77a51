"""What bounds a model's memory: activations computed twice, decoding an image at a time, a cap on the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from rlcm_cli.core.allocations import distinct_bytes
from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.quantised import quantised_tensors

TILE = 512
"""Pixels along a side of a tile that is decoded at once."""
UNTILED = "AutoencoderTiny"
"""A small autoencoder whose tiles diffusers 0.42 puts together wrongly where an image is smaller than one."""


def checkpoint_activations(model: LatentModel, wanted: bool) -> None:
    """Let the denoiser keep only its blocks' inputs for the backward pass, and compute the rest again there, or not.

    The gradient is the same but for rounding. Without re-entrance, which would need an input with a gradient: in LoRA
    training the latents have none.
    """
    if not wanted:
        model.denoiser.disable_gradient_checkpointing()
        return

    def run_block(block: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        # The backward pass is not within `predict`, and what it computes again must come from the same kernels.
        return checkpoint(
            block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), model.attention_kernel()), **named
        )

    model.denoiser.enable_gradient_checkpointing(run_block)


def slice_decoding(model: LatentModel, wanted: bool) -> None:
    """Decode the images of a batch one after the other, or together.

    Tiles (`tile_decoding`) are no choice here: their seams change the images.
    """
    model.pipeline.vae.use_slicing = wanted


def tile_decoding(model: LatentModel, tile: int = TILE) -> None:
    """Decode images that are larger than a tile, in pixels, in tiles of that size, which overlap and are blended.

    The seams change the images, and with them the rewards, so that it is part of what a model is. Raises `ModelError`
    where the autoencoder cannot.
    """
    vae = model.pipeline.vae
    if not hasattr(vae, "use_tiling") or type(vae).__name__ == UNTILED:
        raise ModelError(
            f"model.tiled_decoding: diffusers decodes no tiles with the autoencoder {type(vae).__name__}; leave it out"
        )
    if "tile_sample_min_height" in inspect.signature(vae.enable_tiling).parameters:
        stride = tile * 3 // 4
        vae.enable_tiling(tile, tile, stride, stride)
    else:
        vae.enable_tiling()
        vae.tile_latent_min_size = vae.tile_latent_min_size * tile // vae.tile_sample_min_size
        vae.tile_sample_min_size = tile
    model.digest = digest_tiled(model.digest, True)


def digest_tiled(digest: str, tiled: bool) -> str:
    """Return the digest of a model that decodes in tiles, of the one that it has without; or the same."""
    return digest_json([digest, "tiled_decoding"]) if tiled else digest


def model_bytes(model: LatentModel) -> int:
    """Return the bytes of all weights and buffers of a pipeline, and of those kept in addition."""
    modules = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors += quantised_tensors(model.denoiser)
    there = [tensor for tensor in tensors if not tensor.is_meta]  # freed text encoders are not
    return distinct_bytes([*there, *(model.base_weights or {}).values()])


def cap_memory(device: torch.device, budget: int | None) -> None:
    """Let this process's tensors take no more than `budget` bytes of a CUDA device; None lifts the cap.

    More raises `torch.OutOfMemoryError`. Other devices have no such cap. The driver's own part, some 0.5 GB, is beside
    it.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if budget is None else min(1.0, budget / total), device)
