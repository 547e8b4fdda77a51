"""LoRA files in the layouts that are published, and the change of each layer that they stand for, worked out here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


@dataclass
class Module:
    """A module of a LoRA; `alpha` None: the layout has none, the strength is 1."""

    part: str
    name: str
    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    def delta(self, strength: float | None = None) -> Tensor:
        """The change of the layer's weight, [out, in] or [out, in, height, width]."""
        if strength is None:
            strength = 1.0 if self.alpha is None else self.alpha / self.rank
        product = self.up.flatten(1) @ self.down.flatten(1)
        return strength * product.reshape(len(self.up), *self.down.shape[1:])


def make_modules(
    pipeline: Any,
    *,
    ends: Sequence[str] = ATTENTION,
    parts: Sequence[str] = ("unet",),
    ranks: Sequence[int] = (2,),
    alphas: Sequence[float] | None = None,
) -> list[Module]:
    """Random modules for the layers whose names end so; ranks and alphas take turns, each at its own pace."""
    generator = torch.Generator().manual_seed(5)
    made: list[Module] = []
    for part in parts:
        for name, layer in getattr(pipeline, part).named_modules():
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not name.endswith(tuple(ends)):
                continue
            rank = ranks[len(made) % len(ranks)]
            alpha = alphas[len(made) // 2 % len(alphas)] if alphas else None
            convolution = isinstance(layer, nn.Conv2d)
            down = 0.1 * torch.randn(rank, *layer.weight.shape[1:], generator=generator)
            up = 0.1 * torch.randn(len(layer.weight), rank, *[1, 1] * convolution, generator=generator)
            made.append(Module(part, name, down, up, alpha))
    return made


def expected(modules: Sequence[Module]) -> dict[str, Tensor]:
    return {f"{module.part}.{module.name}": module.delta() for module in modules}


def loaded(pipeline: Any, adapter: str = "policy") -> dict[str, Tensor]:
    """The change that each layer of a pipeline has from an adapter."""
    return {
        f"{part}.{name}": layer.get_delta_weight(adapter).detach()
        for part in ("unet", "text_encoder", "text_encoder_2")
        if hasattr(pipeline, part)
        for name, layer in getattr(pipeline, part).named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.scaling
    }


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-7, msg=name)


def save_kohya(modules: Sequence[Module], file: Path, names: Mapping[str, str] | None = None) -> Path:
    """kohya's networks/lora.py and resize_lora.py, and LyCORIS' LoCon; `names` are others than diffusers'."""
    tensors: dict[str, Tensor] = {}
    for module in modules:
        text = "text_model." if module.part != "unet" and not module.name.startswith("text_model.") else ""
        name = (names or {}).get(module.name, f"{text}{module.name}".replace(".", "_"))
        key = f"{KOHYA_PREFIX[module.part]}{name}"
        tensors |= {f"{key}.lora_down.weight": module.down, f"{key}.lora_up.weight": module.up}
        if module.alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(module.alpha)
    save_file(tensors, file, metadata={"ss_network_module": "networks.lora", "ss_network_alpha": "Dynamic"})
    return file


def save_diffusers(modules: Sequence[Module], file: Path, **settings: Any) -> Path:
    """`save_lora_weights` of a current diffusers; with settings, its metadata for the U-Net."""
    tensors = {}
    for module in modules:
        tensors[f"{module.part}.{module.name}.lora_A.weight"] = module.down
        tensors[f"{module.part}.{module.name}.lora_B.weight"] = module.up
    save_file(tensors, file, metadata=adapter_metadata(modules, **settings) if settings else None)
    return file


def adapter_metadata(modules: Sequence[Module], **settings: Any) -> dict[str, str]:
    stated = {"target_modules": [module.name for module in modules], "lora_dropout": 0.0, "bias": "none", **settings}
    return {"format": "pt", "lora_adapter_metadata": json.dumps({f"unet.{key}": v for key, v in stated.items()})}


def save_processors(modules: Sequence[Module], file: Path) -> Path:
    """Attention processors of diffusers 0.17."""
    tensors = {}
    for module in modules:
        block, _, projection = module.name.replace("to_out.0", "to_out").rpartition(".")
        tensors[f"unet.{block}.processor.{projection}_lora.down.weight"] = module.down
        tensors[f"unet.{block}.processor.{projection}_lora.up.weight"] = module.up
    save_file(tensors, file)
    return file


def save_layers(modules: Sequence[Module], file: Path) -> Path:
    """LoRA-compatible layers of diffusers 0.22, and its text encoder's."""
    tensors = {}
    for module in modules:
        text = module.part != "unet"
        name = (
            f"text_model.{module.name.removeprefix('text_model.')}.lora_linear_layer"
            if text
            else f"{module.name}.lora"
        )
        tensors[f"{module.part}.{name}.down.weight"] = module.down
        tensors[f"{module.part}.{name}.up.weight"] = module.up
    save_file(tensors, file)
    return file


def rslora_strength(alpha: float, rank: int) -> float:
    return alpha / math.sqrt(rank)
