"""Weights of parameters: copied, or exchanged for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


@torch.no_grad()
def copy_weights(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Set parameters to the values of the tensors of the same names, in their own dtypes, on their own devices."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def clone_weights(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Return copies of parameters, on their devices."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@contextlib.contextmanager
def exchanged_weights(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters hold other tensors, on their devices, within the block; nothing is copied between like devices.

    A graph that was built before the block, with their own weights, can be backpropagated through after it.
    """
    # Through `data`, which a graph's record of the parameters does not notice; writing into them it would refuse.
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name].to(parameter.device)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]
