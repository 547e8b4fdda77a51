"""A stack of linear layers with nothing between them, from an embedding to one number.

The LAION aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor) is one of widths
768-1024-128-64-16-1, and ImageReward took its shape. Published, both are an `nn.Sequential` called `layers`, with
dropouts, which do nothing here, at 1, 3 and 5, so that the linear layers are at 0, 2, 4, 6 and 7. The predictor is
also published with ReLUs between the layers (`ava+logos-l14-reluMSE.pth`), which shift the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rlcm_cli.errors import RewardError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_PLACES = (0, 2, 4, 6, 7)
"""Of the linear layers among the published `layers`."""


@dataclass(frozen=True)
class LinearHead:
    """Weights and biases of the layers, first to last.

    Attributes:
        layers: Pairs of float32 [out, in] and [out].
    """

    layers: Sequence[tuple[Tensor, Tensor]]

    @property
    def width(self) -> int:
        """Length of the vectors that it takes."""
        return self.layers[0][0].shape[1]

    def to(self, device: torch.device) -> LinearHead:
        """Return the head on a device."""
        return LinearHead([(weight.to(device), bias.to(device)) for weight, bias in self.layers])

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Apply the layers.

        Args:
            embeddings: float32 [B, width].

        Returns:
            float32 [B].
        """
        from torch.nn.functional import linear

        for weight, bias in self.layers:
            embeddings = linear(embeddings, weight, bias)
        return embeddings.squeeze(-1)


def make_linear_head(tensors: Mapping[str, Tensor], *, reward: str) -> LinearHead:
    """Put the layers `layers.I.weight` and `layers.I.bias` of a state dict together, in the order of I.

    Args:
        tensors: By name, of any floating dtype, nothing else among them.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If there are other tensors, the layers are not at the published places, or they do not follow on
            one another to one number.
    """
    indices = sorted({int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))})
    expected = {f"layers.{index}.{part}" for index in indices for part in ("weight", "bias")}
    if not indices or expected != set(tensors):
        raise RewardError(
            f"reward {reward!r}: the head holds {', '.join(sorted(tensors)) or 'nothing'}, not layers.I.weight and "
            "layers.I.bias; name the published file"
        )
    if tuple(indices) != _PLACES:
        raise RewardError(
            f"reward {reward!r}: the head has its linear layers at {', '.join(map(str, indices))}, not at "
            f"{', '.join(map(str, _PLACES))}, so something else is between them, such as ReLUs; name the published "
            "file of only linear layers (for aesthetic sac+logos+ava1-l14-linearMSE.pth)"
        )
    layers = [(tensors[f"layers.{i}.weight"].float(), tensors[f"layers.{i}.bias"].float()) for i in indices]
    widths = [weight.shape[1] for weight, _ in layers] + [1]
    if any(
        tuple(weight.shape) != (after, before)
        for (weight, _), (before, after) in zip(layers, pairwise(widths), strict=True)
    ):
        raise RewardError(
            f"reward {reward!r}: the layers of the head have shapes {[list(weight.shape) for weight, _ in layers]}, "
            "which do not follow on one another to one number; name the published file"
        )
    return LinearHead(layers)
