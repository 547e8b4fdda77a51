"""Find a pipeline, decide how it is sampled, load it frozen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.families import Family, class_of
from rlcm_cli.models.components import describe_module, load_module, load_scheduler, load_tokenizer
from rlcm_cli.models.fingerprint import digest_modules, modules_of, settings_of
from rlcm_cli.models.folders import INDEX, PipelineFolder, find_pipeline
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import adapts_encoders, fuse_lora
from rlcm_cli.models.parts import Parts, read_parts
from rlcm_cli.models.text_encoders import AbsentEncoders, encoders_of
from rlcm_cli.models.variant import Variant, place_denoiser
from rlcm_cli.samplers import Sampler

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_log = logging.getLogger(__name__)


@quiet_libraries()
def load_model(
    name: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    sampler: str | None = None,
    distilled_lora: str | None = None,
    variant: Variant = Variant(),
    prompts: list[str] | None = None,
) -> LatentModel:
    """Load an embedded model, a local pipeline folder or a hub id; the denoiser comes frozen and in eval mode.

    Args:
        name: A pipeline of one of the families in `rlcm_cli.families`.
        revision: Branch, tag or commit of a hub id.
        dtype: Of its weights.
        device: Where it computes. Its components are loaded one after the other, each moved there before the next.
        sampler: Kind of a sampler, None for the model's own; the pipeline's scheduler becomes the sampler's, with the
            noise schedule of the folder's own.
        distilled_lora: File, folder or hub id, such as LCM-LoRA or TCD-LoRA, that is fused into the weights.
        variant: The size of its images, and what makes it smaller.
        prompts: What is encoded before the denoiser is loaded, as far as there is room to keep it. The text encoders
            are then freed, and loaded again for a while where other prompts are encoded. None: they stay.

    Raises:
        ModelError: For what is not there, cannot be reached, is not such a pipeline, or does not fit the sampler.
    """
    place = select_device(device)
    variant.check(place)
    folder = find_pipeline(name, revision)
    parts = read_parts(folder)
    chosen = parts.choose_sampler(name, sampler, distilled_lora)
    for part in parts.unused:
        _log.warning("%s: its %s is not used", name, part)
    kinds = find_classes(folder, parts)
    pipeline = _assemble_pipeline(folder, DTYPES[dtype], parts, kinds)
    set_scheduler(name, pipeline, parts, chosen)
    model = LatentModel(pipeline, parts.family, chosen, place, DTYPES[dtype], digest="", commit=folder.commit)
    model.recommended = parts.recommend(name, sampler, distilled_lora)
    if variant.image_size is not None:
        model.set_image_size(*variant.image_size)
    if distilled_lora is not None and adapts_encoders(distilled_lora, parts.family):
        prompts = None  # what was fused into them would be lost

    def load(part: str) -> torch.nn.Module:
        return load_module(folder, part, kinds[part], choose_dtype(parts.family, part, DTYPES[dtype]))

    model.digest = digest_modules(_load_modules(model, load, prompts), settings_of(pipeline, parts.family))
    if distilled_lora is not None:
        model.digest = digest_json([model.digest, fuse_lora(pipeline, parts.family, distilled_lora)])
    place_denoiser(model, variant)
    return model


def freeze_pipeline(pipeline: Any, family: Family, place: torch.device) -> None:
    """Put a pipeline on a device, its modules frozen and in eval mode."""
    for part, module in modules_of(pipeline, family).items():
        _freeze(part, module, family, place)
    pipeline.set_progress_bar_config(disable=True)


def choose_dtype(family: Family, part: str, dtype: torch.dtype) -> torch.dtype:
    """Return what a component of a model of a dtype computes in."""
    overflows = dtype == torch.float16 and family.text.overflows_float16 and part.startswith("text_encoder")
    return torch.bfloat16 if overflows else dtype


def _freeze(part: str, module: Any, family: Family, place: torch.device) -> torch.nn.Module:
    """Put a component on a device, frozen and in eval mode, and return it."""
    module.requires_grad_(False)
    module.eval()
    with quiet_libraries():
        module.to(place)
        if part == "vae":
            if module.dtype == torch.float16 and family.autoencoder.needs_float32(module.config):
                module.to(torch.float32)
            # Decoding is all convolutions, for whose kernels this is the native layout; those of videos have no such.
            if all(weight.ndim < 5 for weight in module.parameters()):
                module.to(memory_format=torch.channels_last)
    return module  # type: ignore[no-any-return]


def _assemble_pipeline(folder: PipelineFolder, dtype: torch.dtype, parts: Parts, kinds: Mapping[str, Any]) -> Any:
    """Make a pipeline whose modules have no weights yet, once its components were found to fit each other."""
    loading = parts.family.loading
    components = {
        part: load_tokenizer(folder, part, kind)
        if part.startswith("tokenizer")
        else describe_module(folder, part, kind, choose_dtype(parts.family, part, dtype))
        for part, kind in kinds.items()
        if part != "scheduler"
    }
    loading.check_fit(folder.name, {**dict.fromkeys(loading.optional), **components})
    return join_components(folder, parts, kinds, components)


def join_components(
    folder: PipelineFolder, parts: Parts, kinds: Mapping[str, Any], components: Mapping[str, Any]
) -> Any:
    """Make a pipeline of its components, with the scheduler that its folder states."""
    with quiet_libraries():  # their first import warns of packages that nothing here uses
        import diffusers

    loading = parts.family.loading
    kind, settings = loading.assemble(parts.configs)
    with quiet_libraries():
        if "scheduler" not in kinds:
            default, stated = parts.family.scheduling.default
            scheduler = getattr(diffusers, default)(**stated)
        else:
            scheduler = load_scheduler(folder, kinds["scheduler"])
        absent = dict.fromkeys(loading.optional)
        pipeline = getattr(diffusers, kind)(**{**absent, **components}, scheduler=scheduler, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _load_modules(
    model: LatentModel, load: Callable[[str], torch.nn.Module], prompts: list[str] | None
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Load the modules of a pipeline in the order of their names, and yield each as it was loaded.

    Then it is frozen, in eval mode and, but for the denoiser, which a LoRA may be fused into, on the model's device.
    With `prompts`, they are encoded once all text encoders are there, of which none is left then; without any
    prompt there never is more than one.
    """
    pipeline, family = model.pipeline, model.family
    encoders = encoders_of(pipeline, family)
    waiting = {*encoders}

    def settle(part: str, module: torch.nn.Module) -> torch.nn.Module:
        return _freeze(part, module, family, torch.device("cpu") if part == family.denoiser else model.device)

    absent = AbsentEncoders(pipeline, family, lambda part: settle(part, load(part)))
    for part in sorted(modules_of(pipeline, family)):
        module = load(part)
        yield part, module
        if part not in encoders or prompts != []:
            setattr(pipeline, part, settle(part, module))
        del module
        waiting.discard(part)
        if prompts is not None and not waiting and model.absent_encoders is None:
            _read_ahead(model, prompts)
            absent.free()
            model.absent_encoders = absent


def _read_ahead(model: LatentModel, prompts: Sequence[str]) -> None:
    """Encode prompts, or only the first where there is no room to keep all: then each plan's are, when it is drawn."""
    model.read_prompts(prompts[:1])
    if model.can_keep(len(prompts)):
        model.read_prompts(prompts)


def find_classes(folder: PipelineFolder, parts: Parts) -> dict[str, Any]:
    """Return the class of each component of a pipeline. Raises `ModelError`."""
    import diffusers
    import transformers

    find = functools.partial(_find_class, folder, parts)
    kinds: dict[str, Any] = {}
    loading, index = parts.family.loading, parts.configs.index
    for part, library in loading.components.items():
        if part in loading.optional and class_of(index, part) is None:
            continue
        if library == "diffusers":
            kinds[part] = find(part, diffusers, diffusers.ModelMixin)
        elif part.startswith("tokenizer"):
            kinds[part] = find(part, transformers, transformers.PreTrainedTokenizerBase)
        else:
            kinds[part] = find(part, transformers, transformers.PreTrainedModel)
    if parts.configs.scheduler is not None:
        kinds["scheduler"] = find("scheduler", diffusers, diffusers.SchedulerMixin)
    return kinds


def _find_class(folder: PipelineFolder, parts: Parts, part: str, library: Any, base: type) -> Any:
    """Return the class of a component. Raises `ModelError` for any but a class of the library's own."""
    stated = parts.configs.index.get(part) or [None, None]
    kind = getattr(library, str(stated[1]), None) if stated[0] == library.__name__ else None
    if kind is None and stated[0] == library.__name__ and part in parts.family.modules:
        saved = parts.configs.index.get("_diffusers_version", "(unknown)")
        raise ModelError(
            f"{folder.name}: its {part} is a {stated[1]}, which {library.__name__} {library.__version__} here does "
            f"not know; it was saved by diffusers {saved}: install a newer {library.__name__}"
        )
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ModelError(
            f"{folder.name}: its {part} is {'.'.join(map(str, stated))} by {INDEX}, and should be a class of "
            f"{library.__name__}; use a pipeline of {parts.family.title}"
        )
    return kind


def set_scheduler(name: str, pipeline: Any, parts: Parts, sampler: Sampler) -> None:
    """Set the pipeline's scheduler to its sampler's, with the noise schedule that its own has."""
    import diffusers

    scheduling = parts.family.scheduling
    scheduling.check(name, pipeline.scheduler, parts.configs.scheduler)
    if type(pipeline.scheduler).__name__ != sampler.scheduler:
        with quiet_libraries():
            kind = getattr(diffusers, sampler.scheduler)
            own = scheduling.translate(pipeline.scheduler.config)
            pipeline.scheduler = kind.from_config(own, **scheduling.overrides)
        scheduling.check(name, pipeline.scheduler, None)
