"""Backward passes whose gradient survives float16.

A loss that is a mean over V values has a gradient of about 1/V by each of them. For a 512-pixel image and a hundred
transitions that is 5e-7, and float16 ends at 6e-8: most of it would round to nothing on its way through the model, and
Adam would take full steps on what is left. So the loss is multiplied by a power of two first, and the gradient of the
trained weights, which is float32, divided by it (Micikevicius et al., arXiv 1710.03740, section 3.2). Other dtypes
have float32's exponents, or nearly, and are left as they are.

The scale is found within each optimizer step, from what the step itself holds: nothing of it outlives the step, so
that a resumed run takes the steps that it would have taken. What is added up is divided already, so that the
micro-batches, losses and processes of a step may each have their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from rlcm_cli.models.latent_model import LatentModel

BACKOFFS = "loss_scale_backoffs"
"""Metric of float16 only: how often a backward pass of an optimizer step was repeated with a smaller scale."""
BACKOFF = 4
"""Powers of two that the scale loses where a gradient overflowed."""
LARGEST_EXPONENT = 100
"""The scale is a float32, and so is its inverse."""

MeasuredT = TypeVar("MeasuredT")


class LossScale:
    """The scale of one loss, through the micro-batches of one optimizer step."""

    def __init__(self, model: LatentModel, values: int) -> None:
        """Start with a scale for a loss that is a mean over so many `values`."""
        self._parameters = [parameter for parameter in model.denoiser.parameters() if parameter.requires_grad]
        self._scales = model.dtype == torch.float16
        self._values = values
        self._exponent: int | None = None
        self._backoffs = 0

    def add_gradient(self, compute: Callable[[], tuple[Tensor, Tensor | None, MeasuredT]]) -> MeasuredT:
        """Add the gradient of a loss to that of the trained weights, and return what was measured on the way.

        Where it overflows, the pass is repeated with a smaller scale. A gradient that is infinite or NaN even
        without a scale is added as it is, for the check of the gradient's norm to find.

        Args:
            compute: Runs the forward pass. Returns a tensor that has a graph, the gradient of the loss by it (None
                where it is the loss itself), and what was measured. Called again after an overflow.
        """
        if not self._scales:
            output, gradient, measured = compute()
            torch.autograd.backward(output, gradient)
            return measured
        kept = [parameter.grad for parameter in self._parameters]
        while True:
            for parameter in self._parameters:
                parameter.grad = None
            output, gradient, measured = compute()
            gradient = torch.ones_like(output) if gradient is None else gradient
            exponent = self._choose_exponent(gradient)
            torch.autograd.backward(output, gradient * 2.0**exponent)
            if exponent == 0 or not _are_finite([output, gradient]) or self._is_finite():
                break
            self._exponent = max(0, exponent - BACKOFF)
            self._backoffs += 1
        for parameter, before in zip(self._parameters, kept, strict=True):
            found = None if parameter.grad is None else parameter.grad * 2.0**-exponent
            parameter.grad = before if found is None else found if before is None else before + found
        return measured

    def metrics(self) -> dict[str, Tensor]:
        """Return how often the scale was too large, by the name of the metric; nothing where none is used."""
        return {BACKOFFS: torch.tensor(float(self._backoffs))} if self._scales else {}

    def _choose_exponent(self, gradient: Tensor) -> int:
        if self._exponent is not None:
            return self._exponent
        largest = gradient.abs().max().item()
        if not 0 < largest < math.inf:  # NaN neither
            return 0
        self._exponent = min(max(0, math.floor(math.log2(self._values / largest))), LARGEST_EXPONENT)
        return self._exponent

    def _is_finite(self) -> bool:
        return _are_finite([parameter.grad for parameter in self._parameters if parameter.grad is not None])


def _are_finite(tensors: list[Tensor]) -> bool:
    # One transfer from the device for all.
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())
