"""What is trained, behind the same few functions: an adapter on the U-Net, or the U-Net's own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.full import base_unet, bind_unet, load_unet, save_unet, unet_parameters
from rlcm_cli.models.lora import base_model, bind_lora, load_lora, lora_parameters, save_lora


@dataclass(frozen=True)
class TrainedWeights:
    """One kind of trained weights, attached to the model before."""

    parameters: Callable[[DiffusionModel], dict[str, torch.nn.Parameter]]
    """Give them by name."""
    save: Callable[[DiffusionModel, Path], None]
    """Write them into a folder, in the file that diffusers reads."""
    bind: Callable[[DiffusionModel, Mapping[str, Tensor]], dict[str, Tensor]]
    """Give the tensors of such a file by the names of the parameters."""
    load: Callable[[DiffusionModel, Mapping[str, Tensor], str], None]
    """Put the tensors of such a file, which has a digest, into the model."""
    base_model: Callable[[DiffusionModel], AbstractContextManager[None]]
    """Let the model be what it was before training, within a block."""


TRAINED = {
    "lora": TrainedWeights(lora_parameters, save_lora, bind_lora, load_lora, base_model),
    "full": TrainedWeights(unet_parameters, save_unet, bind_unet, load_unet, base_unet),
}
"""By `train.parameters`."""
