"""Another processor, for as long as a process lives: other last bits of every ᾱ and of every float32 root."""

from __future__ import annotations

from collections.abc import Callable

import torch


def perturb_schedules() -> None:
    """Replace the functions of torch that schedules are made with."""
    torch.cumprod = _perturbed(torch.cumprod)
    torch.Tensor.cumprod = _perturbed(torch.Tensor.cumprod)
    torch.Tensor.sqrt = _perturbed(torch.Tensor.sqrt)


def _perturbed(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *arguments, **settings: _perturb(function(*arguments, **settings))


def _perturb(values: torch.Tensor) -> torch.Tensor:
    if values.dtype != torch.float32 or values.ndim > 1 or values.requires_grad:
        return values
    towards = (torch.arange(values.numel()) % 3 - 1).view_as(values)
    exact = (values == 0) | (values == 1) | (towards == 0)  # 0 and 1 are exact on every processor
    return torch.where(exact, values, torch.nextafter(values, towards * torch.inf))
