"""Autoencoders of diffusers: scaled latents to images and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def decode(vae: Any, latents: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> Tensor:
    """Decode latents [B, C, h, w], whose mean and standard deviation were taken out, to images [B, 3, H, W].

    An autoencoder with a `shift_factor` has its own mean.
    """
    unscaled = latents.to(vae.dtype) * std / float(vae.config.scaling_factor) + (mean + _read_shift(vae))
    images: Tensor = vae.decode(unscaled, return_dict=False)[0]
    return images


def encode(vae: Any, images: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> Tensor:
    """Encode images [B, 3, H, W] in −1 … 1 to latents [B, C, h, w] of the mean of the posterior.

    Its spread is far below the noise that a diffusion model adds.
    """
    encoded = vae.encode(images.to(vae.dtype))
    # AutoencoderTiny and AutoencoderDC have no posterior.
    latents: Tensor = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]
    return (latents - (mean + _read_shift(vae))) * float(vae.config.scaling_factor) / std


def _read_shift(vae: Any) -> float:
    return float(vae.config.get("shift_factor") or 0.0)


def check_autoencoder(name: str, vae: Any, denoiser: str, channels: int) -> None:
    """Raise `ModelError` unless an autoencoder of this configuration makes latents for a denoiser, and scales them."""
    if vae.get("latent_channels") != channels:
        raise ModelError(
            f"{name}: its vae makes latents of {vae.get('latent_channels')} channels, and its {denoiser} takes "
            f"{channels}; use the vae that belongs to it"
        )
    scale, mean, std = (vae.get(key) for key in ("scaling_factor", "latents_mean", "latents_std"))
    statistics_fit = mean is None or (
        all(isinstance(values, Sequence) and len(values) == vae.latent_channels for values in (mean, std))
        and all(_is_finite(value) for value in (*mean, *std))
        and min(std) > 0
    )
    shift = vae.get("shift_factor")
    if not (_is_finite(scale) and scale > 0 and statistics_fit and (shift is None or _is_finite(shift))):
        raise ModelError(
            f"{name}: scaling_factor, shift_factor, latents_mean or latents_std in vae/config.json cannot scale "
            f"latents of {vae.latent_channels} channels; fix them"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
