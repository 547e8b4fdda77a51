"""A reward of an image by itself."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def redness(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
    """Give each image of a batch, uint8 [B, 3, H, W], how much more red than green and blue it is, −1 to 1."""
    red, green, blue = images.float().div(255).unbind(1)
    return (red - (green + blue) / 2).mean((1, 2))
