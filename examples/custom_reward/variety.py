"""A reward of the images of one prompt together."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def variety(images: Tensor, prompt: str, metadata: Sequence[Mapping[str, object]]) -> Tensor:
    """Give each of K images of a prompt, uint8 [K, 3, H, W], its mean distance to the others in colour, 0 to 1."""
    colours = images.float().div(255).mean((2, 3))
    apart = (colours[:, None] - colours[None]).abs().mean(2)
    return apart.sum(1) / (len(images) - 1)


variety.set_level = True
