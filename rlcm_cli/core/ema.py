"""The exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def average_weights(average: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> dict[str, Tensor]:
    """Return the next average, e ← decay · e + (1 − decay) · w, in float32 on the device of the weights.

    `average` holds what `weights` holds, name for name and shape for shape; the first average is the weights
    themselves. 0 ≤ decay ≤ 1. No argument is changed, and the result carries no gradient.
    """
    return {
        # lerp: weights that stay as they are keep their average exactly, which the two products may round away.
        name: torch.lerp(average[name].to(weight.device).float(), weight.detach().float(), 1 - decay)
        for name, weight in weights.items()
    }
