"""The adapter: attached, saved and loaded through peft and diffusers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ModelError
from rlcm_cli.models.lcm import ConsistencyModel, quiet_libraries

ADAPTER = "policy"
PREFIX = "unet."


def attach_lora(
    model: ConsistencyModel, *, rank: int, alpha: int, target_modules: Sequence[str], run_seed: int
) -> None:
    """Put a fresh adapter on the U-Net: A gaussian from the run's seed, B zero, float32.

    Raises `ModelError` where no module has one of the names.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=sorted(target_modules))
    if ADAPTER in getattr(model.unet, "peft_config", {}):
        model.unet.delete_adapters(ADAPTER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(run_seed, "lora"))
        try:
            model.unet.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:
            raise ModelError(
                f"lora.target_modules {list(target_modules)}: no such module in the U-Net ({error})"
            ) from None
    cast_training_params(model.unet, dtype=torch.float32)
    model.adapter_digest = None


def lora_parameters(model: ConsistencyModel) -> dict[str, torch.nn.Parameter]:
    """Give the adapter's trainable parameters by name, in the U-Net's order."""
    return {name: p for name, p in model.unet.named_parameters() if p.requires_grad}


def save_lora(model: ConsistencyModel, folder: Path) -> None:
    """Write the adapter as diffusers does, with the metadata without which alpha would be lost."""
    from peft import get_peft_model_state_dict

    metadata: dict[str, Any] = model.unet.peft_config[ADAPTER].to_dict()
    # A set of names has another order in each process; where the base came from is nobody's business.
    metadata = {key: sorted(v) if isinstance(v, set) else v for key, v in metadata.items()}
    metadata["base_model_name_or_path"] = None
    model.pipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(model.unet, adapter_name=ADAPTER),
        unet_lora_adapter_metadata=metadata,
    )


def load_lora(model: ConsistencyModel, tensors: Mapping[str, Tensor], digest: str) -> None:
    """Put the tensors of a LoRA file (diffusers' names) into the attached adapter, unless they are there.

    `digest` is the file's. Raises `ModelError` unless they bind every module of the adapter and nothing else.
    """
    from peft import set_peft_model_state_dict

    if model.adapter_digest == digest:
        return
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    expected = {
        name.replace(f".{ADAPTER}.", "."): tuple(parameter.shape) for name, parameter in lora_parameters(model).items()
    }
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        different = sorted({*found.items()} ^ {*expected.items()})[0][0]
        raise ModelError(
            f"the LoRA does not fit the adapter (at {different}); its rank, its target_modules and the base model "
            "must be those of the run"
        )
    set_peft_model_state_dict(model.unet, weights, adapter_name=ADAPTER)
    model.adapter_digest = digest


@contextlib.contextmanager
def base_model(model: ConsistencyModel) -> Iterator[None]:
    """Switch the adapter off within the block."""
    model.unet.disable_adapters()
    try:
        yield
    finally:
        model.unet.enable_adapters()


def load_foreign_lora(model: ConsistencyModel, place: str, scale: float) -> None:
    """Load any LoRA that diffusers reads (its own, kohya's, a hub id) for drawing, at a strength.

    Raises `ModelError` for what is not there, or binds no module: diffusers only warns of that.
    """
    path = Path(place)
    source: dict[str, Any] = {"pretrained_model_name_or_path_or_dict": place}
    if path.is_file():
        source = {"pretrained_model_name_or_path_or_dict": str(path.parent), "weight_name": path.name}
    try:
        with quiet_libraries():
            model.pipeline.load_lora_weights(**source, adapter_name=ADAPTER, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        fault = "is no LoRA for this model" if path.exists() else "is not here and could not be loaded from the hub"
        raise ModelError(
            f"LoRA '{place}' {fault} ({reason[:200]}); name a run, a checkpoint, a LoRA file or a hub id"
        ) from error
    if ADAPTER not in getattr(model.unet, "peft_config", {}):
        raise ModelError(
            f"{place}: holds no LoRA layer for the U-Net (its keys should begin with 'unet.'); save it with "
            "the pipeline's save_lora_weights"
        )
    model.pipeline.set_adapters([ADAPTER], [scale])


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    """Give an optimizer's state by `<quantity>/<parameter name>`; empty before its first step."""
    return {
        f"{quantity}/{name}": value
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put the tensors of `optimizer_tensors` back."""
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][quantity] = value if quantity == "step" else value.to(parameter.device)
