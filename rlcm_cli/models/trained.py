"""What is trained of a model, behind the same few functions: an adapter on the denoiser, or the denoiser's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rlcm_cli.models.latent_model import LatentModel


@dataclass(frozen=True)
class TrainedWeights:
    """One kind of trained weights, attached to the model before."""

    parameters: Callable[[LatentModel], dict[str, torch.nn.Parameter]]
    """Return them by name."""
    save: Callable[[LatentModel, Path], None]
    """Write them into a folder, in the file that diffusers reads."""
    bind: Callable[[LatentModel, Mapping[str, Tensor]], dict[str, Tensor]]
    """Return the tensors of such a file by the names of the parameters."""
    load: Callable[[LatentModel, Mapping[str, Tensor], str], None]
    """Put the tensors of such a file, which has a digest, into the model."""
    base_model: Callable[[LatentModel], AbstractContextManager[None]]
    """Let the model be what it was before training, within a block."""
