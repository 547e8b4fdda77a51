"""From uint8 images to what a vision tower takes, as transformers' CLIPImageProcessor does it, on any device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlcm_cli.errors import RewardError
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_MODES = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters, as preprocessor_config.json gives them."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre or pad, normalise.

    Values differ from CLIPImageProcessor's by no more than two levels of 255: Pillow filters in whole numbers, this in
    float32. Of noise and hard edges fewer than one value in 40 differs, of smooth gradients up to one in 11.

    Attributes:
        size: Height and width in pixels that come out.
        shortest_edge: Length to which the shorter side is resized before the crop, keeping the aspect; None where
            the whole image is resized to `size`.
        mean: Of each channel, of values in [0, 1].
        std: Of each channel, of values in [0, 1].
        mode: `bicubic` or `bilinear`, with antialias.
        fit: `crop`: as above. `pad`, of a square `size`: the longer side is resized to it, and black is put around the
            other, as open_clip does with `resize_longest_max`.
    """

    size: tuple[int, int]
    shortest_edge: int | None
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    mode: str = "bicubic"
    fit: Literal["crop", "pad"] = "crop"

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess a batch.

        Args:
            images: uint8 [B, 3, H, W], RGB, or float32 of 0 … 255, whose gradient is kept.

        Returns:
            float32 [B, 3, *size], normalised, on the same device. Whole values give what uint8 images give.
        """
        from torch.nn.functional import interpolate, pad

        pixels, resized = images.float(), self._resized(images.shape[2], images.shape[3])
        # Pillow filters along the rows, then along the columns, and cuts to whole levels from 0 to 255 after each. One
        # step instead of two is up to 30 levels off at hard edges, where a bicubic filter overshoots.
        for size in ((images.shape[2], resized[1]), resized):
            if tuple(pixels.shape[2:]) != size:
                pixels = round_through(interpolate(pixels, size=size, mode=self.mode, antialias=True)).clamp(0, 255)
        if self.fit == "pad":
            below, right = self.size[0] - resized[0], self.size[1] - resized[1]
            pixels = pad(pixels, (right // 2, right - right // 2, below // 2, below - below // 2))
            resized = self.size
        top, left = (resized[0] - self.size[0]) // 2, (resized[1] - self.size[1]) // 2
        pixels = pixels[:, :, top : top + self.size[0], left : left + self.size[1]] / 255
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "pad":
            scale = self.size[0] / max(height, width)
            return round(height * scale), round(width * scale)
        if self.shortest_edge is None:
            return self.size
        if height <= width:
            return self.shortest_edge, int(self.shortest_edge * width / height)
        return int(self.shortest_edge * height / width), self.shortest_edge


def round_through(values: Tensor) -> Tensor:
    """Round, with the gradient of no rounding (the straight-through estimator, arXiv 1308.3432)."""
    return values + (values.round() - values).detach() if values.requires_grad else values.round()


def read_preprocessing(folder: Path, *, reward: str) -> Preprocessing:
    """Read a folder's preprocessor_config.json, of today or of the first days, when a size was a bare number.

    Args:
        folder: Holds the file.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If the file is not there or describes something else.
    """
    path = folder / "preprocessor_config.json"
    try:
        return _parse(json.loads(path.read_bytes()))
    except OSError as error:
        raise RewardError(
            f"reward {reward!r}: {path} cannot be read ({error.strerror}); put the one of the model's hub "
            "repository there"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"reward {reward!r}: {path} does not describe a resize, a centre crop and a normalisation "
            f"({type(error).__name__}: {one_line(error)}); put the one of the model's hub repository there"
        ) from error


def _parse(config: Mapping[str, Any]) -> Preprocessing:
    size, mode = config["size"], _MODES[config.get("resample", 3)]
    edge = size if isinstance(size, int) else size.get("shortest_edge")
    crop = config.get("crop_size") if config.get("do_center_crop", "crop_size" in config) else None
    if crop is None:
        crop = (size["height"], size["width"])
        edge = None
    else:
        crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
    if edge is None and crop != (size["height"], size["width"]):
        raise ValueError("a crop of another size than the resized image")
    if edge is not None and max(crop) > edge:
        raise ValueError(f"a crop of {crop[0]} × {crop[1]} from images whose shorter side is {edge}")
    mean, std = (tuple(float(value) for value in config[key]) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3:
        raise ValueError("image_mean and image_std need three values")
    return Preprocessing((int(crop[0]), int(crop[1])), edge, mean, std, mode)
