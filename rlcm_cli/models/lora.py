"""The adapter: attached, saved and loaded through peft and diffusers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlcm_cli.core.digests import digest_tensors
from rlcm_cli.core.lora_file import TEXT_ENCODERS, LoraFile, read_lora
from rlcm_cli.core.noise import derive_seed
from rlcm_cli.errors import ModelError
from rlcm_cli.families import Family
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.folders import suggest_path
from rlcm_cli.foreign.hub import HubError, fetch_file, find_hub_fault, is_cached, is_hub_id, list_files, measure_files
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import first_line, quiet_libraries
from rlcm_cli.models.lora_binding import Binding, bind_modules, check_loaded
from rlcm_cli.models.offloading import is_offloaded
from rlcm_cli.models.trained import TrainedWeights
from rlcm_cli.models.weights import copy_weights, exchanged_weights

ADAPTER = "policy"
DISTILLED = "distilled"
LORA_FILE = "pytorch_lora_weights.safetensors"

_log = logging.getLogger(__name__)


def attach_lora(
    model: LatentModel, *, rank: int, alpha: int, target_modules: Sequence[str] | None, run_seed: int
) -> None:
    """Put a fresh adapter on the denoiser: A gaussian from the run's seed, B zero, float32.

    `target_modules`: the ends of the modules' names; None: those of the family. Raises `ModelError` where no module
    has one of the names.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    targets = list(target_modules or model.family.lora_targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=sorted(targets))
    if ADAPTER in getattr(model.denoiser, "peft_config", {}):
        model.denoiser.delete_adapters(ADAPTER)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(run_seed, "lora"))
        try:
            model.denoiser.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:
            raise ModelError(
                f"lora.target_modules {targets}: no such module in the {model.family.denoiser_title} "
                f"({error}); usual ones are {', '.join(model.family.lora_targets)}"
            ) from None
    cast_training_params(model.denoiser, dtype=torch.float32)
    model.attached = LORA
    model.adapter_digest = None


def lora_parameters(model: LatentModel) -> dict[str, torch.nn.Parameter]:
    """Return the adapter's trainable parameters by name, in the denoiser's order."""
    return {name: p for name, p in model.denoiser.named_parameters() if p.requires_grad}


def save_lora(model: LatentModel, folder: Path) -> None:
    """Write the adapter as diffusers does, with the metadata without which alpha would be lost."""
    from peft import get_peft_model_state_dict

    metadata: dict[str, Any] = model.denoiser.peft_config[ADAPTER].to_dict()
    # A set of names has another order in each process; where the base came from is nobody's business.
    metadata = {key: sorted(v) if isinstance(v, set) else v for key, v in metadata.items()}
    metadata["base_model_name_or_path"] = None
    denoiser = model.family.denoiser
    layers = get_peft_model_state_dict(model.denoiser, adapter_name=ADAPTER)
    named = {f"{denoiser}_lora_layers": layers, f"{denoiser}_lora_adapter_metadata": metadata}
    model.pipeline.save_lora_weights(folder, **named)


def bind_lora(model: LatentModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file (diffusers' names) by the names of the parameters that they belong to.

    Raises `ModelError` unless they bind every module of the adapter and nothing else.
    """
    weights = {name.removeprefix(f"{model.family.denoiser}."): tensor for name, tensor in tensors.items()}
    in_file = {name: name.replace(f".{ADAPTER}.", ".") for name in lora_parameters(model)}
    expected = {in_file[name]: tuple(parameter.shape) for name, parameter in lora_parameters(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        different = sorted({*found.items()} ^ {*expected.items()})[0][0]
        raise ModelError(
            f"the LoRA does not fit the adapter (at {different}); its rank, its target_modules and the base model "
            "must be those of the run"
        )
    return {name: weights[key] for name, key in in_file.items()}


def load_lora(model: LatentModel, tensors: Mapping[str, Tensor], digest: str) -> None:
    """Put the tensors of a LoRA file into the attached adapter, unless they are there.

    `digest` is the file's. Raises `ModelError` as `bind_lora`.
    """
    if model.adapter_digest == digest:
        return
    copy_weights(lora_parameters(model), bind_lora(model, tensors))
    model.adapter_digest = digest


@contextlib.contextmanager
def base_model(model: LatentModel) -> Iterator[None]:
    """Switch the adapter off within the block."""
    model.denoiser.disable_adapters()
    try:
        yield
    finally:
        model.denoiser.enable_adapters()


LORA = TrainedWeights(lora_parameters, save_lora, bind_lora, load_lora, base_model)
"""An adapter on the denoiser."""


@contextlib.contextmanager
def folded_lora(model: LatentModel) -> Iterator[None]:
    """Draw with W + alpha / rank · B A in the place of each adapted layer's W within the block: one product for three.

    The base weights are put aside and put back, not subtracted from, so that they keep their bits. Only in float32,
    and for samplers that allow it: 16 bits and TF32 have no room for a small B A next to W, so that another policy
    would draw than the one that is trained. Nor where W is sharded: it is not here.
    """
    layers = _foldable_layers(model)
    if not layers:
        yield
        return
    with torch.no_grad():
        folded = {name: layer.base_layer.weight + layer.get_delta_weight(ADAPTER) for name, layer in layers.items()}
    weights = {name: layer.base_layer.weight for name, layer in layers.items()}
    with base_model(model), exchanged_weights(weights, folded):
        yield


def _foldable_layers(model: LatentModel) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    tf32 = model.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    if model.dtype != torch.float32 or tf32 or model.quantized or model.sharded or not model.sampler.folds_lora:
        return {}
    if is_offloaded(model):  # weights would be put back that lie on another device by then
        return {}
    layers = {
        name: module
        for name, module in model.denoiser.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.scaling and not module.disable_adapters
    }
    # What a foreign file may bring: DoRA, or a bias, whose sum with W is not a sum of weights only.
    plain = all(not layer.lora_variant and not any(layer.lora_bias.values()) for layer in layers.values())
    return layers if plain else {}


def adapts_encoders(place: str, family: Family) -> bool:
    """Return whether a LoRA has layers for a text encoder. Raises `ModelError` where it cannot be read."""
    lora = read_lora_file(locate_lora(place), place, family)
    return any(lora.of(part) for part in TEXT_ENCODERS)


def load_foreign_lora(model: LatentModel, place: str, scale: float) -> None:
    """Load any LoRA that diffusers reads (its own, kohya's, a hub id) for drawing, at a strength.

    Every layer is compared with the file. What this model has no layer for is told. Raises `ModelError` for what is
    not there, is not a LoRA for this model or mostly not, or is not loaded as the file says.
    """
    if adapts_encoders(place, model.family):
        model.keep_encoders()
    _read_lora(model.pipeline, model.family, place, ADAPTER)
    scale_foreign_lora(model, scale)


def scale_foreign_lora(model: LatentModel, scale: float) -> None:
    """Set the strength of the LoRA that `load_foreign_lora` has loaded; 0 draws as the base model does."""
    model.pipeline.set_adapters([ADAPTER], [scale])
    _forget_prompts(model)


def unload_foreign_lora(model: LatentModel) -> None:
    """Take the LoRA that `load_foreign_lora` has loaded out of the model again."""
    model.pipeline.unload_lora_weights()
    _forget_prompts(model)


def _forget_prompts(model: LatentModel) -> None:
    """Encode prompts again where a LoRA may have layers in the text encoders, which then are there."""
    if model.absent_encoders is None:
        model.forget_prompts()


def fuse_lora(pipeline: Any, family: Family, place: str) -> str:
    """Add any LoRA that diffusers reads to the weights of a pipeline at full strength, and leave no adapter behind.

    For a distilled LoRA (LCM-LoRA, arXiv 2311.05556; TCD-LoRA, arXiv 2402.19159), which the policy is made of.
    Returns the digest of its tensors and strengths: that of fused weights would depend on how a machine rounds a
    product. Raises `ModelError` as `load_foreign_lora` does, and for layers with a bias, which weights cannot hold.
    """
    lora = _read_lora(pipeline, family, place, DISTILLED)
    if any(module.bias is not None for module in lora.modules):
        raise ModelError(
            f"LoRA '{place}': has biases (lora_bias), which cannot be fused into weights; use another LoRA"
        )
    digest = _digest_adapter(pipeline, DISTILLED)
    with quiet_libraries():
        try:
            pipeline.fuse_lora(safe_fusing=True)
        except ValueError as error:
            raise ModelError(
                f"LoRA '{place}' cannot be fused into this model ({first_line(error)}); get its file again"
            ) from error
        pipeline.unload_lora_weights()
        # Unloaded, nothing can be taken out of the weights any more: this only clears the list of what is fused.
        pipeline.unfuse_lora()
    return digest


def _digest_adapter(pipeline: Any, adapter: str) -> str:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tensors: dict[str, Tensor] = {}
    strengths: dict[str, float] = {}
    for part in pipeline.get_list_adapters():
        model = getattr(pipeline, part)
        tensors |= {f"{part}.{name}": p for name, p in model.named_parameters() if f".{adapter}." in name}
        strengths |= {
            f"{part}.{name}": float(module.scaling[adapter])
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer) and adapter in module.scaling
        }
    return digest_tensors(tensors, strengths)


def _read_lora(pipeline: Any, family: Family, place: str, adapter: str) -> LoraFile:
    file = locate_lora(place)
    lora = read_lora_file(file, place, family)
    if lora.adapter_names:
        raise ModelError(
            f"{place}: its keys have the name of an adapter in them (lora_A.{lora.adapter_names[0]}.weight), which "
            "diffusers does not take; save it with the pipeline's save_lora_weights"
        )
    if lora.kohya and any(module.magnitude is not None for module in lora.modules):
        raise ModelError(
            f"{place}: is a DoRA in kohya's format (dora_scale), which diffusers would load as a plain LoRA; use one "
            "that diffusers saved"
        )
    binding = bind_modules(lora, pipeline, family, place)
    try:
        with quiet_libraries(), faults_of_libraries():
            if lora.kohya and not family.names.kohya_in_diffusers:
                pipeline.load_lora_weights(_name_for_diffusers(binding), adapter_name=adapter)
            else:
                pipeline.load_lora_weights(
                    str(file.parent), weight_name=file.name, adapter_name=adapter, use_safetensors=True
                )
    except ForeignError as error:
        raise ModelError(
            f"{place}: is not a LoRA for this model ({error}); name a run, a checkpoint, a LoRA file or a hub id"
        ) from error
    # What the libraries would warn of (keys that they did not use, layers without weights) is found by comparison.
    try:
        remark = check_loaded(pipeline, adapter, lora, binding, place)
    except ModelError:
        with quiet_libraries():
            pipeline.unload_lora_weights()
        raise
    if remark:
        _log.warning("%s", remark)
    return lora


def _name_for_diffusers(binding: Binding) -> dict[str, Tensor]:
    """Return the matrices of a LoRA under the keys of diffusers, whose pipelines give each the strength 1."""
    tensors = {}
    for part, modules in binding.bound.items():
        for name, module in modules.items():
            tensors[f"{part}.{name}.lora_A.weight"] = module.down
            tensors[f"{part}.{name}.lora_B.weight"] = module.up
    return tensors


def read_lora_file(file: Path, place: str, family: Family) -> LoraFile:
    """Read a safetensors file as a LoRA for a model of a family; `place` is what its user calls it.

    Raises `ModelError`.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is not a mapping
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{place}: is not a readable safetensors file ({first_line(error)}); get it again") from None
    names, denoiser = family.names, family.denoiser
    return read_lora(tensors, metadata, place, {names.kohya: denoiser}, dict.fromkeys(names.prefixes, denoiser))


def locate_lora(place: str) -> Path:
    """Find the LoRA file that a path, a hub id or a file of one (OWNER/NAME/FILE) names; from the hub it is fetched.

    Of a folder or a repository, it is `pytorch_lora_weights.safetensors`, or else the only safetensors file. Raises
    `ModelError` where there is none, or no telling which.
    """
    path = Path(place)
    if path.is_file():
        return path
    if path.is_dir():
        return path / _choose_file([file.name for file in path.iterdir()], place)
    return _fetch_from_hub(place)


def measure_lora(place: str) -> int:
    """Return the bytes of the file that `locate_lora` finds, which is not fetched from the hub; raises as it does."""
    if Path(place).exists() or find_hub_fault():
        return locate_lora(place).stat().st_size
    repository, file = split_file(place)
    try:
        sizes = measure_files(repository)
    except HubError as fault:
        raise _explain_absence(place, fault) from None
    name = file or _choose_file([*sizes], place)
    if name not in sizes:
        raise ModelError(f"LoRA '{place}': {repository} has no file {name}; name one of its safetensors files")
    return sizes[name]


def _choose_file(names: Sequence[str], place: str) -> str:
    if LORA_FILE in names:
        return LORA_FILE
    weights = sorted(name for name in names if name.endswith(".safetensors"))
    if len(weights) == 1:
        return weights[0]
    if not weights:
        raise ModelError(f"{place}: holds no safetensors file; name a run, a checkpoint, a LoRA file or a hub id")
    raise ModelError(
        f"{place}: holds {len(weights)} safetensors files, {', '.join(weights[:3])}{', …' * (len(weights) > 3)}; "
        f"name the one that you want, such as {place}/{weights[0]}"
    )


def split_file(place: str) -> tuple[str, str | None]:
    """Return the repository of the hub and the file in it that a name means, OWNER/NAME/FILE.safetensors.

    The file is None where only a repository is named.
    """
    owner, _, rest = place.partition("/")
    name, _, file = rest.partition("/")
    return (f"{owner}/{name}", file) if file.endswith(".safetensors") else (place, None)


def _fetch_from_hub(place: str) -> Path:
    repository, file = split_file(place)
    try:
        if file is not None and is_hub_id(repository):
            return fetch_file(repository, file)
        # Known by this name, it is found where the hub, which lists the files, is out of reach.
        name = LORA_FILE if is_cached(place, LORA_FILE) else _choose_file(list_files(place)[1], place)
        return fetch_file(place, name)
    except HubError as fault:
        raise _explain_absence(place, fault) from None


def _explain_absence(place: str, fault: HubError) -> ModelError:
    return ModelError(
        f"LoRA '{place}' is not here and could not be loaded from the hub ({fault}){suggest_path(place)}; name a "
        "run, a checkpoint, a LoRA file or a hub id"
    )
