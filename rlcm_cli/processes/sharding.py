"""The denoiser's frozen weights, shared by the processes of a job: each holds a part of every block.

By torch's FSDP2 (`fully_shard`). What is trained, a LoRA, is attached afterwards: its parameters are ordinary tensors,
whole in each process, so that optimizer, average, checkpoint and export know nothing of this.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from rlcm_cli.errors import ModelError
from rlcm_cli.processes.job import Processes
from rlcm_cli.processes.pace import Pace, ShardedBlock

# A block's output may be a view, and FSDP's hooks on it would be lost if somebody wrote into it: nobody does. It is
# said here because such filters are put back where a model is loaded.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)


def shard_weights(denoiser: nn.Module, device: torch.device, processes: Processes) -> None:
    """Leave each process a part of a frozen denoiser's weights, on its device.

    One block is put on the device at a time and cut there, so that the whole never is there. `denoiser` lies on the
    CPU; all processes have the same one. Raises `ModelError` where it does not say what its blocks are.
    """
    kinds = getattr(denoiser, "_no_split_modules", None) or ()
    blocks = [module for module in denoiser.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise ModelError(
            f"runtime.shard_weights: {type(denoiser).__name__} does not say what its blocks are (_no_split_modules), "
            "so that its weights cannot be sharded; leave --shard-weights out"
        )
    mesh = init_device_mesh(device.type, (processes.size,))
    pace = processes.pace
    pace.overlaps = device.type == "cuda"
    for module in (*reversed(blocks), denoiser):  # a block within another comes first
        own = _find_whole(module)
        if own is None:
            continue
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # By default FSDP gathers the block before this one while this one goes backward, without asking the others.
        sharded.set_modules_to_backward_prefetch([sharded])
        pace.blocks.append(ShardedBlock(sharded.unshard, sharded.reshard, functools.partial(_is_gathered, *own)))
        _ask_before_use(module, pace, len(pace.blocks) - 1)


def _find_whole(module: nn.Module) -> tuple[nn.Module, str] | None:
    """Return a layer in a module, and the name of one of its weights, that no block within the module has taken."""
    for layer in module.modules():
        for name, weight in layer.named_parameters(recurse=False):
            if not isinstance(weight, DTensor):
                return layer, name
    return None


def _is_gathered(layer: nn.Module, name: str) -> bool:
    return not isinstance(getattr(layer, name), DTensor)


def _ask_before_use(module: nn.Module, pace: Pace, number: int) -> None:
    """Ask for a block before FSDP's own hooks gather it, forward and backward."""

    def ask(*_: object) -> None:
        pace.ask(number)

    def ask_backward(_module: nn.Module, _inputs: Any, output: Any) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(ask)  # type: ignore[no-untyped-call]

    module.register_forward_pre_hook(ask, prepend=True)
    module.register_forward_hook(ask_backward, prepend=True)
