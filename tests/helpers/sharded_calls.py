"""What processes that share weights are compared by: their own calls of a model, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.models.memory import checkpoint_activations
from rlcm_cli.processes.job import Processes

LATE = ("flow", "scm")
"""Samplers whose models are told times from 0 to 1."""


def compute(model: LatentModel, rank: int, calls: int) -> tuple[Tensor, Tensor]:
    """Give predictions without and with a gradient, and the adapter's gradient, of a process's own calls."""
    generator = torch.Generator().manual_seed(rank)
    conditioning, parameters = model.encode_prompts(["cat", "a dog"]), lora_parameters(model).values()
    times, found = torch.tensor([0.7, 0.3]) if model.sampler.kind in LATE else torch.tensor([700, 300]), []
    for parameter in parameters:
        parameter.grad = None
    for _ in range(calls):
        latents = torch.randn(2, *model.latent_shape, generator=generator).to(model.dtype)
        with torch.no_grad():
            found.append(model.predict(latents, times, conditioning, 1.0))
        # Two graphs at once, and another policy's prediction between forward and backward, as some objectives have.
        ways = [model.predict(latents * scale, times, conditioning, 1.0) for scale in (1.0, 0.5)]
        with torch.no_grad(), model.trained.base_model(model):
            found.append(model.predict(latents, times, conditioning, 1.0))
        sum(way.float().square().mean() for way in ways).backward()
        found += [way.detach() for way in ways]
    return torch.stack(found), torch.cat([parameter.grad.flatten() for parameter in parameters])


def compare(whole: LatentModel, sharded: LatentModel, processes: Processes) -> dict[str, list[Any]]:
    """Compare the calls of two processes: whether the bytes agree in both, and the gradients' relative differences.

    First as on a CPU, then as on a GPU and with activations that are computed again.
    """
    report: dict[str, list[Any]] = {"predictions": [], "gradients": []}
    for checkpointing, overlaps in ((False, False), (True, True)):
        processes.pace.overlaps = overlaps
        for model in (whole, sharded):
            checkpoint_activations(model, checkpointing)
        calls = 3 if processes.leads else 1
        expected, gradient = compute(whole, processes.rank, calls)
        found, shared_gradient = compute(sharded, processes.rank, calls)
        differs = float(not torch.equal(found, expected))
        difference = ((shared_gradient - gradient).norm() / gradient.norm()).item()
        parts = processes.gather({"differs": differs, "difference": difference})
        report["predictions"].append(not any(part["differs"] for part in parts))
        report["gradients"].append(max(part["difference"] for part in parts))
    return report
