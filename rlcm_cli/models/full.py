"""The denoiser's own weights as what is trained: attached, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rlcm_cli.errors import ModelError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.trained import TrainedWeights
from rlcm_cli.models.weights import copy_weights, exchanged_weights

ONE_FILE = "1TB"
"""Above any denoiser's size: diffusers would cut a file of more than 10 GB, such as SDXL's in float32."""


def attach_full(model: LatentModel, *, keep_base_on: torch.device) -> None:
    """Let the denoiser's own weights be trained, from those of the base model on, which are kept once on a device.

    The model's device where `base_denoiser` is used at each step, else the host, so that the start can be put back.
    """
    parameters = denoiser_parameters(model)
    if model.base_weights is None:
        model.base_weights = {name: p.detach().to(keep_base_on, copy=True) for name, p in parameters.items()}
        model.adapter_digest = model.digest
    model.base_weights = {name: tensor.to(keep_base_on) for name, tensor in model.base_weights.items()}
    model.denoiser.requires_grad_(True)
    model.attached = WHOLE_DENOISER
    load_denoiser(model, {}, model.digest)


def denoiser_parameters(model: LatentModel) -> dict[str, torch.nn.Parameter]:
    """Return the denoiser's parameters by name, in its order."""
    return dict(model.denoiser.named_parameters())


def save_denoiser(model: LatentModel, folder: Path) -> None:
    """Write the denoiser to a subfolder of its name, as in a pipeline, which its class in diffusers reads."""
    model.denoiser.save_pretrained(folder / model.family.denoiser, max_shard_size=ONE_FILE)
    file = folder / model.family.denoiser / "config.json"
    # Where the base came from is nobody's business.
    config = {key: value for key, value in json.loads(file.read_text("utf-8")).items() if key != "_name_or_path"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def bind_denoiser(model: LatentModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a denoiser's file by the names of the parameters that they belong to.

    Raises `ModelError` unless they are those of a denoiser of this architecture.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in denoiser_parameters(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        different = sorted({*found.items()} ^ {*expected.items()})[0][0]
        raise ModelError(
            f"the {model.family.denoiser_title} is another than the model's (at {different}); it must be of the same "
            "base model"
        )
    return dict(tensors)


def load_denoiser(model: LatentModel, tensors: Mapping[str, Tensor], digest: str) -> None:
    """Put the tensors of a denoiser's file into the model, unless they are there.

    `digest` is the file's; the base model's own digest stands for the weights that `attach_full` kept, whatever the
    tensors. Raises `ModelError` as `bind_denoiser`.
    """
    if model.adapter_digest == digest:
        return
    if model.quantized:
        raise ModelError(
            f"is a whole {model.family.denoiser_title}, which has no place in a model in {model.quantized[0]} bits; "
            "leave --quantize out"
        )
    kept = model.base_weights if digest == model.digest else None
    copy_weights(denoiser_parameters(model), bind_denoiser(model, tensors) if kept is None else kept)
    model.adapter_digest = digest


@contextmanager
def base_denoiser(model: LatentModel) -> Iterator[None]:
    """Put the base model's weights in the place of the trained ones within the block."""
    if model.base_weights is None:
        raise RuntimeError("attach_full comes first")
    with exchanged_weights(denoiser_parameters(model), model.base_weights):
        yield


WHOLE_DENOISER = TrainedWeights(denoiser_parameters, save_denoiser, bind_denoiser, load_denoiser, base_denoiser)
"""All weights of the denoiser."""
