"""What a LoRA file says of each module: its matrices, and the strength that they have, read only from the file.

A module changes the weights of a layer by strength · up · down (of a convolution, its kernel as a matrix). The
strength is

    kohya                        alpha / rank: each module's own alpha, the rows of its `lora_down`; without alpha 1
    diffusers, with metadata     alpha / rank, or alpha / sqrt(rank) where `use_rslora` is set: `lora_alpha`, or what
                                 `alpha_pattern` has for the module's name
    diffusers, without           1, under each of the names that it has used

Nothing here asks the libraries that load such files, so that what they loaded can be compared with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcm_cli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

METADATA_KEY = "lora_adapter_metadata"
DENOISERS = ("unet", "transformer")
"""What pipelines call their denoiser, and diffusers' files of a LoRA with them."""
TEXT_ENCODERS = TEXT_ENCODER, TEXT_ENCODER_2 = ("text_encoder", "text_encoder_2")
PARTS = (*DENOISERS, *TEXT_ENCODERS)

KOHYA_PARTS = {
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lora_te": TEXT_ENCODER,
    "lora_te1": TEXT_ENCODER,
    "lora_te2": TEXT_ENCODER_2,
}
KOHYA_ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha", "dora_scale": "magnitude"}
PEFT_ROLES = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}

KOHYA = re.compile(r"(lora_[a-z]+[12]?)_(\w+)\.([\w.]+)")
PART = re.compile(r"(unet|transformer|text_encoder|text_encoder_2)\.(.+)")
PEFT = re.compile(r"(.+)\.(lora_[AB]|lora_magnitude_vector)(\.(?!weight$|bias$)\w+)?(\.weight|\.bias)?")
PROCESSOR = re.compile(r"(.+?)(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight")
LAYER = re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.(down|up)\.weight")
DOTTED = re.compile(r"(.+)\.lora_(down|up)\.weight")

OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "on_input": "(IA)3",
    "lora_mid": "a LoRA with a Tucker core (lora_mid)",
    "w_norm": "normalisation layers",
    "diff": "whole weights (diff)",
    "bundle_emb": "a textual inversion (bundle_emb)",
}

READ_SETTINGS = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules"}
HARMLESS_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    "use_dora",
}
"""Which change nothing, or choose modules, or announce tensors, of which the file is the better witness."""
USUAL_SETTINGS = {"bias": "none", "init_lora_weights": "gaussian", "megatron_core": "megatron.core"} | {
    "qalora_group_size": 16
}
"""Values under which a setting does nothing; for the others, those that are nothing, or True of the initialisation."""


@dataclass(frozen=True)
class PartSettings:
    """What the metadata say of the LoRA of one part of a pipeline."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    target_modules: tuple[str, ...] | None
    """None: a regular expression."""

    def alpha_of(self, name: str) -> float:
        """Return the alpha of a module of this name."""
        return _matching(self.alpha_pattern, name, self.alpha)


@dataclass(frozen=True)
class LoraModule:
    """One module of a LoRA."""

    part: str
    """One of `PARTS`; empty where the file does not say."""
    name: str
    """As the file spells it, without what names the part."""
    down: Tensor
    """[rank, in], or of a convolution [rank, in, height, width]."""
    up: Tensor
    """[out, rank], or [out, rank, 1, 1]."""
    strength: float
    alpha: float
    magnitude: Tensor | None = None
    """Of DoRA (arXiv 2402.09353), [out] in any shape."""
    bias: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])

    @property
    def key(self) -> str:
        """The module's name without what spellings differ in."""
        return normalise(self.name)

    @property
    def is_plain(self) -> bool:
        """Whether it is a product of two matrices, and nothing else."""
        return self.magnitude is None and self.bias is None


@dataclass(frozen=True)
class LoraFile:
    """A LoRA."""

    modules: tuple[LoraModule, ...]
    kohya: bool
    """Under kohya's names, else under diffusers'."""
    stated: Mapping[str, PartSettings] = field(default_factory=dict)
    """Part → what the metadata say of it."""
    adapter_names: tuple[str, ...] = ()
    """Names of adapters that stand in the keys (`lora_A.default.weight`), which diffusers does not take."""

    def of(self, part: str) -> list[LoraModule]:
        """Return the modules of a part."""
        return [module for module in self.modules if module.part == part]


def normalise(name: str) -> str:
    """Return a module's name with underscores for dots, without the `text_model` that transformers 5 dropped."""
    return name.replace(".", "_").removeprefix("text_model_")


def read_lora(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    place: str,
    kohya_parts: Mapping[str, str] = MappingProxyType({}),
    dotted_parts: Mapping[str, str] = MappingProxyType({}),
) -> LoraFile:
    """Read the tensors and the metadata of a safetensors file; `place` names it in errors.

    The tensors are torch's, on the CPU, or have as much of them as `store.tensor_file.StoredTensor`, which the modules
    then hold: `shape`, `ndim`, `numel()`, `float()` with NumPy's values, and one of a single value is a number.

    `kohya_parts`: prefixes of kohya's keys → the part of the pipeline, where they differ from `KOHYA_PARTS`: many
    transformers have `lora_unet` too. `dotted_parts`: the same of other keys than diffusers', which end in a dot
    (`diffusion_model.`), or are empty where the keys begin with the module's name.

    Raises `ModelError` for what is not a LoRA, or not only one (LoHa, LoKr and the like), for incomplete modules,
    values that are not finite, and metadata whose meaning is not known here.
    """
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    adapter_names = set()
    for key, tensor in tensors.items():
        part, name, role, adapter = _split(key, {**KOHYA_PARTS, **kohya_parts}, dotted_parts) or _refuse_tensor(
            key, len(tensors), place
        )
        found.setdefault((part, name), {})[role] = tensor
        if adapter:
            adapter_names.add(adapter)
    if not found:
        raise ModelError(f"{place}: holds no tensors; name a LoRA file")
    stated = {part: settings for part in PARTS if (settings := read_lora_settings(metadata, part, place))}
    modules = [_read_module(part, name, roles, stated.get(part), place) for (part, name), roles in found.items()]
    kohya = any(KOHYA.fullmatch(key) for key in tensors)
    return LoraFile(tuple(modules), kohya, stated, tuple(sorted(adapter_names)))


def read_lora_settings(metadata: Mapping[str, str], part: str, place: str) -> PartSettings | None:
    """Read what diffusers' metadata say of a part; None: nothing.

    Raises `ModelError` for settings whose meaning is not known here.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[METADATA_KEY])
        values = {key.removeprefix(f"{part}."): v for key, v in values.items() if key.startswith(f"{part}.")}
        if not values:
            return None
        for key in ("target_modules", "exclude_modules", "layers_pattern"):
            if isinstance(values.get(key), str):
                _check_expression(values[key])
        targets = values.get("target_modules")
        settings = PartSettings(
            rank=_number(values["r"], int),
            alpha=_number(values["lora_alpha"], int, float),
            rank_pattern=_pattern(values.get("rank_pattern")),
            alpha_pattern=_pattern(values.get("alpha_pattern")),
            rslora=bool(values.get("use_rslora")),
            target_modules=tuple(sorted(map(str, targets))) if isinstance(targets, list) else None,
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"{place}: its metadata '{METADATA_KEY}' states no rank and alpha that can be read "
            f"({type(error).__name__}: {str(error)[:100]}); save the LoRA again with a pipeline's save_lora_weights"
        ) from None
    unknown = sorted(key for key, value in values.items() if not _does_nothing(key, value))
    if unknown:
        raise ModelError(
            f"{place}: its metadata set '{unknown[0]}', whose effect is not known here; export the LoRA without it"
        )
    return settings


def _number(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{str(value)[:20]} is not a rank or alpha")
    return value


def _pattern(value: Any) -> dict[str, float]:
    pattern = dict(value or {})
    for key, number in pattern.items():
        _check_expression(key)
        _number(number, int, float)
    return pattern


def _check_expression(text: str) -> None:
    """Raise `ValueError` for a regular expression that could take for ever, since peft evaluates those of a file."""
    try:
        re.compile(text)
    except re.error:
        raise ValueError(f"{text[:40]} is not a regular expression") from None
    if len(text) > 300 or len(re.findall(r"[*+{]", text)) > 3 or re.search(r"\)[*+{?]", text):
        raise ValueError(f"the pattern {text[:40]} is too intricate")


def _matching(pattern: Mapping[str, float], name: str, otherwise: float) -> float:
    """Return the value of the first key that is the end of the name, as peft chooses it."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def _does_nothing(key: str, value: Any) -> bool:
    if key in READ_SETTINGS or key in HARMLESS_SETTINGS or not value or USUAL_SETTINGS.get(key) == value:
        return True
    return key == "init_lora_weights" and value is True


def _split(
    key: str, kohya_parts: Mapping[str, str], dotted_parts: Mapping[str, str]
) -> tuple[str, str, str, str] | None:
    """Return part, module, role and adapter name of a tensor; None: it is not a LoRA's."""
    if len(key) > 300:
        return None
    if (match := KOHYA.fullmatch(key)) and match[1] in kohya_parts:
        role = KOHYA_ROLES.get(match[3])
        return (kohya_parts[match[1]], match[2], role, "") if role else None
    part, rest = match.groups() if (match := PART.fullmatch(key)) else _split_part(key, dotted_parts)
    if match := PEFT.fullmatch(rest):
        name, matrix, adapter, kind = match.groups(default="")
        role = PEFT_ROLES.get(matrix + kind)
        return (part, name, role, adapter.removeprefix(".")) if role else None
    if match := PROCESSOR.fullmatch(rest):
        name, projection, direction = match.groups()
        if part in TEXT_ENCODERS:
            projection = f"{projection}_proj"
        else:
            projection = "to_out.0" if projection == "out" else f"to_{projection}"
        return part, f"{name}.{projection}", direction, ""
    if match := LAYER.fullmatch(rest):
        return part, match[1], match[2], ""
    if part in dotted_parts.values() and (match := DOTTED.fullmatch(rest)):
        return part, match[1], match[2], ""
    if rest.endswith(".alpha"):
        return part, rest.removesuffix(".alpha"), "alpha", ""
    return None


def _split_part(key: str, dotted_parts: Mapping[str, str]) -> tuple[str, str]:
    for prefix in sorted(dotted_parts, key=len, reverse=True):
        if key.startswith(prefix):
            return dotted_parts[prefix], key.removeprefix(prefix)
    return "", key


def _refuse_tensor(key: str, count: int, place: str) -> tuple[str, str, str, str]:
    kind = next((kind for part, kind in OTHER_KINDS.items() if part in key), None)
    what = f"holds {kind}" if kind else f"has a tensor that is not a LoRA's, of {count}"
    raise ModelError(f"{place}: {what} ('{key[:100]}'), which cannot be used here; name a file of a plain LoRA")


def _read_module(
    part: str, name: str, roles: Mapping[str, Tensor], stated: PartSettings | None, place: str
) -> LoraModule:
    shown = f"{part}.{name}".removeprefix(".")
    down, up = roles.get("down"), roles.get("up")
    if down is None or up is None:
        raise ModelError(f"{place}: module {shown} has only a half of its two matrices; get the file again")
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or not down.shape[0] or up.shape[1] != down.shape[0]:
        raise ModelError(
            f"{place}: the matrices of module {shown}, {list(down.shape)} and {list(up.shape)}, are no LoRA's; get "
            "the file again"
        )
    for tensor in roles.values():
        if not np.isfinite(np.asarray(tensor.float())).all():
            raise ModelError(f"{place}: module {shown} holds values that are not finite; use another file")
    rank = int(down.shape[0])
    alpha = roles.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise ModelError(f"{place}: the alpha of module {shown} is not a number; get the file again")
    divisor: float = rank
    if alpha is not None:
        number = float(alpha)
    elif stated is not None:
        number = stated.alpha_of(name)
        divisor = math.sqrt(rank) if stated.rslora else rank
    else:
        number = float(rank)
    return LoraModule(part, name, down, up, number / divisor, number, roles.get("magnitude"), roles.get("bias"))
