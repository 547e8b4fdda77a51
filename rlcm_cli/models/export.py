"""Trained weights in the files that other tools read, and those files read back as these tools do it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlcm_cli.core.noise import seed_generator
from rlcm_cli.errors import ModelError, NotFiniteError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import first_line, quiet_libraries
from rlcm_cli.models.lora import ADAPTER, LORA_FILE, save_lora
from rlcm_cli.models.lora_binding import adapted_layers, apply_weight, list_layers, state_strengths
from rlcm_cli.samplers import PipelineCall, SamplerSettings

TEXT_PREFIX = "text_model."
PLACES = ("_name_or_path", "name_or_path")
"""Keys under which the libraries write where a part was loaded from."""


def use_float32(model: LatentModel) -> None:
    """Compute in float32 from now on: the weights keep their values, as each float16 and bfloat16 is a float32.

    What was encoded or kept in the former dtype is made again.
    """
    with quiet_libraries():
        model.pipeline.to(torch.float32)
    model.dtype = torch.float32
    model.kept.clear()
    model.forget_prompts()


def write_lora(model: LatentModel, folder: Path, dtype: torch.dtype) -> Path:
    """Write the attached adapter as diffusers does, rank and alpha in its metadata; return the file."""
    _settle_strengths(model)
    save_lora(model, folder)
    file = folder / LORA_FILE
    if dtype != torch.float32:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file(_cast(load_file(file), dtype), file, metadata=metadata)
    return file


def write_kohya(model: LatentModel, file: Path, dtype: torch.dtype, *, title: str) -> Path:
    """Write the attached adapter under kohya's keys, which ComfyUI, A1111 and others read; return the file.

    Each module has `<prefix>_<module>.lora_down.weight` (A), `.lora_up.weight` (B) and its `.alpha`, with the family's
    prefix; the strength is alpha / rank. Module names are those of `ForeignNames.stack`, with underscores. The
    metadata are the ones that those tools show, and name no place. Raises `ModelError` for a DoRA or biases, and for
    modules that have no name there.
    """
    layers = dict(adapted_layers(model.denoiser, ADAPTER))
    if any(layer.lora_variant or layer.lora_bias[ADAPTER] for layer in layers.values()):
        raise ModelError(
            "the LoRA is a DoRA or has biases, which kohya's format has no room for; use another --format"
        )
    _settle_strengths(model)
    tensors: dict[str, Tensor] = {}
    for name, members in _stack_adapted(model, layers.keys()).items():
        key = f"{model.family.names.kohya}_{name.replace('.', '_')}"
        down, up, alpha = _stack_matrices([layers.get(member) for member in members], model, members)
        tensors |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": torch.tensor(alpha),
        }
    alphas = {tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")}
    ranks = {len(tensor) for key, tensor in tensors.items() if key.endswith(".lora_down.weight")}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _only({str(rank) for rank in ranks}),
        "ss_network_alpha": _only({str(alpha) for alpha in alphas}),
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": "x".join(map(str, reversed(model.image_size))),
        **_name_prediction(model),
        **(described[1] if (described := model.family.names.describe(model.pipeline)) else {}),
    }
    save_file(_cast(tensors, dtype), file, metadata=metadata)
    return file


def _stack_adapted(model: LatentModel, adapted: Set[str]) -> dict[str, tuple[str, ...]]:
    """Return the layers that have an adapter by their names in kohya's files, next to those that are one with them.

    Raises `ModelError` where one has no name there.
    """
    every = [name for name, _ in list_layers(model.denoiser)]
    stacked = {
        name: members for name, members in model.family.names.stack(every).items() if not adapted.isdisjoint(members)
    }
    unnamed = sorted({*adapted}.difference(*stacked.values()))
    if unnamed:
        raise ModelError(
            f"the LoRA has a module for {unnamed[0]}, which kohya's format has no name for that diffusers and ComfyUI "
            "read; use --format diffusers"
        )
    return stacked


def _stack_matrices(
    adapters: Sequence[Any], model: LatentModel, members: Sequence[str]
) -> tuple[Tensor, Tensor, float]:
    """Return A, B and alpha of a layer of kohya's files, of the adapters of its parts; None: a part has none.

    Several are [A; …] and a matrix with the B along its diagonal, each at its strength.
    """
    if len(adapters) == 1:
        (layer,) = adapters
        return (
            layer.lora_A[ADAPTER].weight,
            layer.lora_B[ADAPTER].weight,
            float(layer.scaling[ADAPTER] * layer.r[ADAPTER]),
        )
    rank = next(layer.r[ADAPTER] for layer in adapters if layer is not None)
    downs, ups = [], []
    for layer, name in zip(adapters, members, strict=True):
        if layer is None:
            plain = model.denoiser.get_submodule(name)
            downs.append(torch.zeros(rank, plain.in_features))
            ups.append(torch.zeros(plain.out_features, rank))
        else:
            downs.append(layer.lora_A[ADAPTER].weight.detach().cpu())
            ups.append(layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight.detach().cpu())
    down = torch.cat(downs)
    return down, torch.block_diag(*ups), float(len(down))  # type: ignore[no-untyped-call]


def _name_prediction(model: LatentModel) -> dict[str, str]:
    """Return what the model predicts, in words that there are for models with ᾱ only."""
    if model.noise.alpha_bar is None:
        return {}
    return {"modelspec.prediction_type": "v" if model.prediction_type == "v_prediction" else "epsilon"}


def write_pipeline(model: LatentModel, folder: Path, dtype: torch.dtype) -> Path:
    """Write the whole pipeline as `from_pretrained` reads it, with W + alpha / rank · B A for each adapted W.

    The model is of no use for training afterwards. Raises `ModelError` where the sum is not finite.
    """
    pipeline = model.pipeline
    with quiet_libraries():
        if ADAPTER in getattr(model.denoiser, "peft_config", {}):
            if any(layer.lora_bias[ADAPTER] for _, layer in adapted_layers(model.denoiser, ADAPTER)):
                raise ModelError("the LoRA has biases, which weights cannot hold; use --format diffusers")
            try:
                model.denoiser.fuse_lora(safe_fusing=True)
            except ValueError as error:
                raise ModelError(
                    f"the LoRA cannot be folded into the model ({first_line(error)}); export another checkpoint"
                ) from error
            model.denoiser.unload_lora()
        pipeline.to(dtype)
        pipeline.vae.to(memory_format=torch.contiguous_format)  # safetensors writes no other
        pipeline.save_pretrained(folder, safe_serialization=True)
    for part in model.family.loading.components:
        component = getattr(pipeline, part)
        if part.startswith("tokenizer"):
            _write_vocabulary(component, folder / part)
        elif type(component).__name__.startswith("CLIPText"):
            _rename_for_transformers_4(folder / part)
    for file in folder.rglob("*.json"):
        _withhold_places(file)
    return folder


def _rename_for_transformers_4(folder: Path) -> None:
    """Write a CLIP text encoder's tensors under the names of the published files, `text_model.encoder.layers…`.

    transformers 5 leaves the prefix out when it writes, and reads both; transformers 4 and ComfyUI know only these.
    """
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file({_published_name(name): tensor for name, tensor in load_file(file).items()}, file, metadata=metadata)
    for index in folder.glob("*.safetensors.index.json"):
        values = json.loads(index.read_text(encoding="utf-8"))
        values["weight_map"] = {_published_name(name): file for name, file in values["weight_map"].items()}
        index.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _published_name(name: str) -> str:
    beside = name.startswith((TEXT_PREFIX, "text_projection."))
    return name if beside else TEXT_PREFIX + name


def _write_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Write vocab.json and merges.txt, which transformers 4 and other tools read, if only tokenizer.json is there."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.model).__name__ == "BPE" and not (folder / "vocab.json").exists():
        backend.model.save(str(folder))


def apply_base(model: LatentModel, layers: Iterable[str]) -> dict[str, Tensor]:
    """Return the base weights of layers of the denoiser, applied as `compare_fused` compares them."""
    found = {}
    for name in layers:
        layer = model.denoiser.get_submodule(name)
        found[name] = apply_weight(getattr(layer, "base_layer", layer).weight)
    return found


def read_fused(folder: Path, denoiser: str, layers: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights of layers in the denoiser's files of a pipeline's folder, applied as `compare_fused` does."""
    keys = {f"{name}.weight": name for name in layers}
    found: dict[str, Tensor] = {}
    for file in (folder / denoiser).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {keys[key]: apply_weight(opened.get_tensor(key)) for key in keys.keys() & set(opened.keys())}
    return found


def read_back_lora(base: LatentModel, file: Path) -> Any:
    """Load a LoRA file into a base pipeline by diffusers' public loader; return the pipeline."""
    with quiet_libraries():
        base.pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
    return base.pipeline


def read_back_pipeline(folder: Path, device: torch.device) -> Any:
    """Load a pipeline's folder by diffusers' public loader, in float32."""
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    # Those that it may be without have to be named.
    absent = {part: None for part, stated in index.items() if stated == [None, None]}
    with quiet_libraries():
        pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True, **absent)
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def describe_call(
    model: LatentModel, settings: SamplerSettings, *, steps: int, guidance_scale: float
) -> PipelineCall | None:
    """Return how a pipeline of diffusers draws as the model's sampler does; None where none of its schedulers does."""
    found = model.sampler.in_diffusers(settings, model.noise, steps)
    if found is None:
        return None
    family, own = model.family, model.pipeline.scheduler.config
    guided_twice = model.count_predictions(guidance_scale) > 1
    guidance = {family.guidance.argument: guidance_scale, **(family.guidance.others if guided_twice else {})}
    return replace(
        found,
        arguments={**found.arguments, **guidance, **family.latents.arguments(model), **family.text.arguments(model)},
        settings={**{name: own[name] for name in family.scheduling.stated}, **found.settings},
    )


def use_scheduler(pipeline: Any, call: PipelineCall) -> None:
    """Give a pipeline the scheduler that a call is for, with the noise of its own."""
    import diffusers

    if type(pipeline.scheduler).__name__ != call.scheduler or call.settings:
        with quiet_libraries():
            kind = getattr(diffusers, call.scheduler)
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **call.settings)


def draw_by_pipeline(pipeline: Any, prompt: str, seed: int, call: PipelineCall) -> Tensor:
    """Draw an image, uint8 [3, H, W], by the pipeline's own `__call__`. Raises `NotFiniteError`."""
    with quiet_libraries():
        drawn = pipeline(prompt=prompt, generator=seed_generator(seed), output_type="pt", **call.arguments)
    if not drawn.images[0].isfinite().all():
        raise NotFiniteError(f"prompt '{prompt}': diffusers draws NaN; use --dtype float32 or bfloat16")
    return cast("Tensor", drawn.images[0].float().mul(255).round().to(torch.uint8).cpu())


def adapted_parts(model: LatentModel) -> list[str]:
    """Return the parts of the pipeline that have an adapter."""
    return sorted(model.pipeline.get_list_adapters())


def _settle_strengths(model: LatentModel) -> None:
    """Set one whole alpha for all modules, whatever theirs were; differences in strength go into the matrices.

    A run can start from such a LoRA, and diffusers, which loses the alphas of a kohya file, cannot lose this one.
    """
    layers = dict(adapted_layers(model.denoiser, ADAPTER))
    config = model.denoiser.peft_config[ADAPTER]
    alphas = {layer.lora_alpha[ADAPTER] for layer in layers.values()}
    if len(alphas) == 1 and all(alpha == int(alpha) for alpha in alphas) and not config.use_rslora:
        config.lora_alpha = int(alphas.pop())
    else:
        config.use_rslora = False
        config.lora_alpha = Counter(layer.r[ADAPTER] for layer in layers.values()).most_common(1)[0][0]
        for layer in layers.values():
            settled = config.lora_alpha / layer.r[ADAPTER]
            with torch.no_grad():
                layer.lora_B[ADAPTER].weight *= layer.scaling[ADAPTER] / settled
            layer.use_rslora[ADAPTER] = False
            layer.lora_alpha[ADAPTER], layer.scaling[ADAPTER] = config.lora_alpha, settled
    state_strengths(model.denoiser, ADAPTER)


def _only(values: set[str]) -> str:
    """Return the one value, or `Dynamic`, as kohya's tools say of modules that differ."""
    return values.pop() if len(values) == 1 else "Dynamic"


def name_architecture(model: LatentModel) -> str | None:
    """Return what other tools call the denoiser's architecture; None where they have no name for it."""
    described = model.family.names.describe(model.pipeline)
    return described and described[0]


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}


def _withhold_places(file: Path) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(values, dict) and any(key in values for key in PLACES):
        kept = {key: value for key, value in values.items() if key not in PLACES}
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
