"""A LoRA file held against a pipeline: where its modules belong, and whether what was loaded is what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlcm_cli.core.lora_file import PARTS, LoraFile, LoraModule, normalise
from rlcm_cli.errors import ModelError
from rlcm_cli.families import Family

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of a module's effect, relative to its largest value, where the file's numbers are of a dtype."""
FUSED_TOLERANCE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the same for whole weights, compared with which the effect may be small."""
PROBES = 4
"""Random vectors that two matrices are compared by: those that map them alike are equal."""


@dataclass(frozen=True)
class Binding:
    """Modules of a LoRA file by the layers of a pipeline that they change."""

    bound: Mapping[str, Mapping[str, LoraModule]]
    """Part → name of the layer in it → module of the file."""
    missing: tuple[LoraModule, ...]
    """Those that the pipeline has no layer for."""

    @property
    def count(self) -> int:
        """Number of modules that are bound."""
        return sum(map(len, self.bound.values()))


def bind_modules(lora: LoraFile, pipeline: Any, family: Family, place: str) -> Binding:
    """Find the layer of each module of a LoRA, in a pipeline that has no adapter yet.

    Raises `ModelError` where there is none for the denoiser, or where a layer has another size than the module: such a
    LoRA was made for another base model.
    """
    bound: dict[str, dict[str, LoraModule]] = {}
    missing = [module for module in lora.modules if module.part not in PARTS]
    for part in PARTS:
        component = getattr(pipeline, part, None)
        layers = dict(list_layers(component)) if component is not None else {}
        spellings = _find_spellings(component, family, part)
        for module in lora.of(part):
            names = spellings.get(module.key)
            if names is None:
                missing.append(module)
                continue
            for name, piece in _take_apart(module, names, layers, place).items():
                if name in bound.setdefault(part, {}):
                    raise ModelError(f"{place}: has layer {part}.{name} twice; get the file again")
                bound[part][name] = piece
    denoiser, title = family.denoiser, family.denoiser_title
    if not lora.of(denoiser):
        raise ModelError(
            f"{place}: holds no LoRA layer for the {title} (its keys should begin with '{denoiser}.' or "
            f"'{family.names.kohya}_'); save it with the pipeline's save_lora_weights"
        )
    if not bound.get(denoiser):
        raise ModelError(
            f"{place}: is not a LoRA for this model, whose {title} has none of its {len(lora.of(denoiser))} modules "
            f"(such as {lora.of(denoiser)[0].name}); name the base model that it was made for"
        )
    return Binding(bound, tuple(missing))


def check_loaded(pipeline: Any, adapter: str, lora: LoraFile, binding: Binding, place: str) -> str | None:
    """Compare the layers that diffusers has loaded with the file, and set the strengths that it loses.

    diffusers gives the attention layers of a kohya file its commonest alpha, whatever their own are. Returns a line
    where only a part of the file is in the model. Raises `ModelError` where most of it is not, or a layer differs.
    """
    left_out = [f"{module.part}.{module.name}".removeprefix(".") for module in binding.missing]
    for part in PARTS:
        component = getattr(pipeline, part, None)
        loaded = dict(adapted_layers(component, adapter)) if component is not None else {}
        for name, module in binding.bound.get(part, {}).items():
            layer = loaded.pop(name, None)
            if layer is None:
                left_out.append(f"{part}.{name}")
                continue
            if _has_matrices(layer, adapter, module):
                _set_strength(layer, adapter, lora, module, f"{part}.{name}", place)
            else:
                _check_loaded_effect(layer, adapter, module, f"{part}.{name}", place)
        if loaded:
            raise ModelError(
                f"{place}: diffusers reads it as a LoRA of {part}.{next(iter(loaded))}, which it does not name; save "
                "it again with the pipeline's save_lora_weights"
            )
        state_strengths(component, adapter)
    total = len(lora.modules)
    if not left_out:
        return None
    told = f"binds {total - len(left_out)} of {total} modules; this model does not take {_list_few(left_out)}"
    if 2 * len(left_out) > total:
        raise ModelError(f"{place}: {told}; name the base model that it was made for")
    return f"{place}: {told}, so that it acts in part"


def state_strengths(component: Any, adapter: str) -> None:
    """Let peft's configuration say what the layers have, so that a file saved of them does."""
    config = getattr(component, "peft_config", {}).get(adapter)
    if config is None:
        return
    layers = dict(adapted_layers(component, adapter))
    config.rank_pattern = {n: layer.r[adapter] for n, layer in layers.items() if layer.r[adapter] != config.r}
    config.alpha_pattern = {
        name: layer.lora_alpha[adapter]
        for name, layer in layers.items()
        if layer.lora_alpha[adapter] != config.lora_alpha
    }


def compare_files(
    written: LoraFile, wanted: Mapping[str, LoraModule], denoiser: nn.Module, family: Family, place: str
) -> None:
    """Raise `ModelError` unless a file has the effect on each layer of a denoiser that is wanted, and no other."""
    spellings, layers = _find_spellings(denoiser, family, family.denoiser), dict(list_layers(denoiser))
    found: dict[str, LoraModule] = {}
    for module in written.modules:
        found |= _take_apart(module, spellings.get(module.key, (module.name,)), layers, place)
    # A layer of several in one may have nothing learned.
    found = {name: module for name, module in found.items() if name in wanted or module.up.any()}
    if found.keys() != wanted.keys():
        different = sorted(found.keys() ^ wanted.keys())
        raise ModelError(f"{place}: has other modules than the LoRA ({_list_few(different)})")
    for name, module in wanted.items():
        tolerance = TOLERANCE.get(found[name].down.dtype, 0.0)
        for mine, theirs in zip(_effects(found[name]), _effects(module), strict=True):
            _check_effect(mine, theirs, tolerance, f"{place}: {name}")


def compare_fused(
    fused: Mapping[str, Tensor], base: Mapping[str, Tensor], wanted: Mapping[str, LoraModule], place: str
) -> None:
    """Raise `ModelError` unless the weights of each layer are those of the base with the effect that is wanted.

    `fused` and `base` are layer → its weights applied to `probes`, as `apply_weight` returns them. A DoRA's are not
    compared: its weights are no sum.
    """
    for name, module in wanted.items():
        if module.is_plain:
            tolerance = FUSED_TOLERANCE.get(fused[name].dtype, 0.0)
            _check_effect(fused[name].float(), base[name].float() + effect(module), tolerance, f"{place}: {name}")


def apply_weight(weight: Tensor) -> Tensor:
    """Return a layer's weight applied to `probes`: [out, `PROBES`], of the weight's dtype, on the CPU."""
    matrix = weight.detach().cpu().float().flatten(1)
    return (matrix @ probes(matrix.shape[1])).to(weight.dtype)


def effect(module: LoraModule) -> Tensor:
    """Return strength · up · down applied to a few fixed random vectors: float32 [out, `PROBES`]."""
    down, up = module.down.float().flatten(1), module.up.float().flatten(1)
    return module.strength * (up @ (down @ probes(down.shape[1])))


def probes(width: int) -> Tensor:
    """Return fixed random vectors, float32 [width, `PROBES`]."""
    return torch.randn(width, PROBES, generator=torch.Generator().manual_seed(width))


def _effects(module: LoraModule) -> list[Tensor]:
    others = [tensor.float().flatten() for tensor in (module.magnitude, module.bias) if tensor is not None]
    return [effect(module), *others]


def _check_effect(found: Tensor, wanted: Tensor, tolerance: float, where: str) -> None:
    """Raise `ModelError` where two effects differ by more than `tolerance` of the larger of their greatest values."""
    largest = max(found.abs().max().item(), wanted.abs().max().item())
    difference = (found - wanted).abs().max().item()
    if not difference <= tolerance * largest:
        raise ModelError(
            f"{where} differs from what the LoRA makes of it, by {difference / largest:.2g} of its values"
        )


def list_layers(component: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that a LoRA may have a module for, under the names that they have without adapters."""
    from peft.tuners.lora import LoraLayer

    for name, module in component.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module.get_base_layer()
        elif isinstance(module, nn.Linear | nn.Conv2d) and not re.search(r"\.(base_layer|lora_\w+\.\w+)$", name):
            yield name, module


def adapted_layers(component: nn.Module, adapter: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have an adapter of this name, peft's, under the names that they have without it."""
    from peft.tuners.lora import LoraLayer

    for name, module in component.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.scaling:
            yield name, module


def _find_spellings(component: Any, family: Family, part: str) -> dict[str, tuple[str, ...]]:
    """Return the names of a component's layers by their normalised spellings in LoRA files.

    Some have one spelling for several layers.
    """
    layers = dict(list_layers(component)) if component is not None else {}
    if part != family.denoiser:
        return {normalise(name): (name,) for name in layers}
    spellings = {normalise(name): names for name, names in family.names.stack(layers).items()}
    for name in layers:
        spellings[normalise(name)] = (name,)
        spellings[normalise(family.names.spell(name, component.config, layers))] = (name,)
    return spellings


def _take_apart(
    module: LoraModule, names: Sequence[str], layers: Mapping[str, Any], place: str
) -> dict[str, LoraModule]:
    """Return what a module does to each of the layers that it stands for, the rows of whose outputs follow each other.

    Raises `ModelError` where its size is not that of the layers.
    """
    if len(names) == 1:
        if names[0] in layers:
            _check_size(module, names[0], weight_shape(layers[names[0]]), place)
        return {names[0]: module}
    rows = [weight_shape(layers[name])[0] for name in names]
    if not module.is_plain or sum(rows) != len(module.up):
        raise ModelError(
            f"{place}: is not a LoRA for this model: its {module.name} is for {len(module.up)} outputs, the model's "
            f"{', '.join(names)} have {sum(rows)}; name the base model that it was made for"
        )
    ups = torch.split(module.up, rows)
    pieces = {name: replace(module, up=up) for name, up in zip(names, ups, strict=True)}
    for name, piece in pieces.items():
        _check_size(piece, name, weight_shape(layers[name]), place)
    return pieces


def weight_shape(layer: Any) -> tuple[int, ...]:
    """Return the shape of a layer's weight, which in 4 bits is not that of the tensor."""
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(layer.weight.shape)


def _check_size(module: LoraModule, name: str, shape: tuple[int, ...], place: str) -> None:
    made_for = (module.up.shape[0], *module.down.shape[1:])
    # A convolution of one pixel is a linear layer; files have either for the other.
    if shape != made_for and [n for n in shape if n != 1] != [n for n in made_for if n != 1]:
        raise ModelError(
            f"{place}: is not a LoRA for this model: its {module.name} is for weights of {_show(made_for)}, "
            f"the model's {name} has {_show(shape)}; name the base model that it was made for"
        )


def _has_matrices(layer: Any, adapter: str, module: LoraModule) -> bool:
    """Return whether a layer has the matrices of a module as they are in the file."""
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    pairs = [
        (layer.lora_A[adapter].weight, module.down),
        (layer.lora_B[adapter].weight, module.up),
        (getattr(layer.lora_B[adapter], "bias", None), module.bias),
        (magnitudes[adapter].weight if adapter in magnitudes else None, module.magnitude),
    ]
    for loaded, said in pairs:
        if loaded is None and said is None:
            continue
        if loaded is None or said is None or loaded.is_meta or loaded.numel() != said.numel():
            return False
        if not torch.equal(loaded.detach().cpu(), said.to(loaded.dtype).reshape(loaded.shape)):
            return False
    return True


def _check_loaded_effect(layer: Any, adapter: str, module: LoraModule, where: str, place: str) -> None:
    """Raise `ModelError` unless a layer does what a module says, although its matrices are others.

    So it is where diffusers has multiplied them by the strength, or taken several layers apart.
    """
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if module.is_plain and not down.is_meta and not up.is_meta:
        found = effect(
            replace(module, down=down.detach().cpu(), up=up.detach().cpu(), strength=layer.scaling[adapter])
        )
        wanted = effect(module)
        largest = wanted.abs().max().item()
        tolerance = TOLERANCE.get(module.down.dtype, 0.0)
        if found.shape == wanted.shape and (found - wanted).abs().max().item() <= tolerance * largest:
            return
    raise ModelError(
        f"{place}: diffusers does not load {where} as it is in the file; save it again with the pipeline's "
        "save_lora_weights"
    )


def _set_strength(layer: Any, adapter: str, lora: LoraFile, module: LoraModule, where: str, place: str) -> None:
    loaded = layer.scaling[adapter]
    if abs(loaded - module.strength) <= 1e-6 * abs(module.strength):
        return
    if not lora.kohya:
        raise ModelError(
            f"{place}: diffusers loads {where} at a strength of {loaded:g}, by the file it is {module.strength:g}; "
            "save it again with the pipeline's save_lora_weights"
        )
    # `set_scale`, which --scale comes to, computes alpha / rank again.
    layer.lora_alpha[adapter] = module.strength * layer.r[adapter]
    layer.scaling[adapter] = module.strength


def _show(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _list_few(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
