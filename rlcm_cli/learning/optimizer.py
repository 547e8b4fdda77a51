"""The optimizer: made from its settings, its state as tensors with names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from rlcm_cli.config import TrainSettings
from rlcm_cli.core.learning_rate import learning_rate
from rlcm_cli.errors import ConfigError
from rlcm_cli.processes.job import Processes

ADAM_STATE = frozenset({"step", "exp_avg", "exp_avg_sq"})
"""What torch's AdamW keeps of each parameter that has had a gradient."""


def find_optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of an optimizer. Raises `ConfigError` where its package is not there."""
    return {"adamw": lambda: torch.optim.AdamW, "adamw8bit": _adamw8bit}[name]()


def rate_of(settings: TrainSettings, iteration: int) -> float:
    """Return the learning rate of an iteration, from 0."""
    return learning_rate(
        settings.learning_rate,
        iteration,
        warmup=settings.lr_warmup_iterations,
        schedule=settings.lr_schedule,
        decay_iterations=settings.lr_decay_iterations,
        decay_every=settings.lr_decay_every,
    )


def clip_gradient(parameters: Iterable[torch.nn.Parameter], settings: TrainSettings) -> float:
    """Shorten the gradient to the largest norm that the settings admit, and return the norm that it had.

    A norm that is infinite or NaN makes the gradient useless; the caller must not step on it.
    """
    largest = settings.max_grad_norm or math.inf
    return float(torch.nn.utils.clip_grad_norm_(parameters, largest, error_if_nonfinite=False))


def sum_gradients(parameters: Iterable[torch.nn.Parameter], processes: Processes) -> None:
    """Replace each gradient by the sum of all processes' gradients, in float32; none where no process has one."""
    if processes.size == 1:
        return
    listed = list(parameters)
    present = torch.tensor([float(parameter.grad is not None) for parameter in listed], device=listed[0].device)
    gradients = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach() for parameter in listed
    ]
    flat = torch.cat([present, *(gradient.flatten().float() for gradient in gradients)])
    processes.sum(flat)
    counts, *sums = torch.split(flat, [len(listed), *(parameter.numel() for parameter in listed)])
    for parameter, count, summed in zip(listed, counts.tolist(), sums, strict=True):
        parameter.grad = summed.view_as(parameter).to(parameter.dtype) if count else None


def make_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], settings: TrainSettings, rate: float
) -> torch.optim.Optimizer:
    """Make the optimizer of the settings at a learning rate, without state."""
    return find_optimizer(settings.optimizer)(
        parameters.values(),
        lr=rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
    )


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """Return an optimizer's state by `<quantity>/<parameter name>`; empty before its first step.

    A count that is not a tensor, as bitsandbytes' `step`, becomes an int64 one.
    """
    return {
        f"{quantity}/{name}": _to_tensor(value)
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put the tensors of `optimizer_tensors` back.

    Raises `ValueError` where they are not the state of such an optimizer of these parameters.
    """
    for key, tensor in tensors.items():
        quantity, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(f"it has a state of {name[:80]!r}, which is not trained")
        parameter = parameters[name]
        _check_state(key, quantity, tensor, parameter)
        value: Any = tensor
        if quantity != "step":  # torch counts on the host
            value = tensor.to(parameter.device)
        elif tensor.dtype == torch.int64:
            value = int(tensor)
        optimizer.state[parameter][quantity] = value
    needed = ADAM_STATE if isinstance(optimizer, torch.optim.AdamW) else frozenset()
    for name, parameter in parameters.items():
        lacking = needed.difference(state) if (state := optimizer.state.get(parameter)) else ()
        if lacking:
            raise ValueError(f"it lacks {min(lacking)}/{name[:80]}")


def _check_state(key: str, quantity: str, tensor: Tensor, parameter: torch.nn.Parameter) -> None:
    if quantity == "step" and tensor.ndim:
        raise ValueError(f"{key[:80]} is not a count")
    if quantity in ("exp_avg", "exp_avg_sq") and (tensor.shape, tensor.dtype) != (parameter.shape, parameter.dtype):
        raise ValueError(f"{key[:80]} has another shape or dtype than its parameter")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{key[:80]} is not finite")
    if quantity in ("exp_avg_sq", "step") and (tensor < 0).any():
        raise ValueError(f"{key[:80]} is negative")


def _to_tensor(value: Tensor | int) -> Tensor:
    if isinstance(value, int):
        return torch.tensor(value)
    # Tables that all parameters share, as bitsandbytes' of its 256 values: safetensors takes no memory twice.
    return value.clone() if value.ndim == 1 else value


def _adamw8bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        import bitsandbytes
    except ImportError:
        raise ConfigError(
            "train.optimizer adamw8bit needs the package bitsandbytes, which is not installed; pip install "
            "'rlcm[8bit]', or use adamw"
        ) from None
    return cast("type[torch.optim.Optimizer]", bitsandbytes.optim.AdamW8bit)
