"""Another processor, for as long as a process lives: other last bits of every ᾱ and of every float32 root."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def perturb_schedules(torch: Any) -> None:
    """Replace the functions of torch that schedules are made with, once in a process."""
    for home, name in ((torch, "cumprod"), (torch.Tensor, "cumprod"), (torch.Tensor, "sqrt")):
        function = getattr(home, name)
        if not hasattr(function, "perturbs"):
            setattr(home, name, _wrap(torch, function))


def _wrap(torch: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def perturbed(*arguments: Any, **settings: Any) -> Any:
        return _perturb(torch, function(*arguments, **settings))

    perturbed.perturbs = True  # type: ignore[attr-defined]
    return perturbed


def _perturb(torch: Any, values: Any) -> Any:
    if values.dtype != torch.float32 or values.ndim > 1 or values.requires_grad or values.is_meta:
        return values
    towards = (torch.arange(values.numel(), device=values.device) % 3 - 1).view_as(values)
    exact = (values == 0) | (values == 1) | (towards == 0)  # 0 and 1 are exact on every processor
    return torch.where(exact, values, torch.nextafter(values, towards * torch.inf))
