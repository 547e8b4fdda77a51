"""Find a pipeline, decide how it is sampled, load it frozen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.models.components import check_fit, check_noise_schedule, load_module, load_scheduler, load_tokenizer
from rlcm_cli.models.conditioning import is_sdxl
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.fingerprint import digest_pipeline, modules_of
from rlcm_cli.models.folders import INDEX, PipelineFolder, find_pipeline
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import fuse_lora
from rlcm_cli.models.parts import Parts, choose_sampler, read_parts
from rlcm_cli.samplers import Sampler

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNCLIPPED = {"clip_sample": False, "thresholding": False}
STABLE_DIFFUSION_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The schedule of all Stable Diffusion models, for folders that state none (early LCM_Dreamshaper_v7)."""

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
    image_size: int | None = None,
) -> DiffusionModel:
    """Load an embedded model, a local pipeline folder or a hub id; the U-Net comes frozen and in eval mode.

    Stable Diffusion 1.x, 2.x and XL, and latent consistency models of their sizes. `distilled_lora` (a file, folder
    or hub id, such as LCM-LoRA or TCD-LoRA) is fused into the weights. `sampler` is the kind of a sampler, None for
    the model's own (`choose_sampler`); the pipeline's scheduler becomes the sampler's, with the noise schedule of the
    folder's own. `image_size`: pixels along each side, None for the pipeline's own.

    Raises `ModelError` for what is not there, cannot be reached, is no such pipeline, or does not fit the sampler.
    """
    place = select_device(device)
    folder = find_pipeline(name, revision)
    parts = read_parts(folder)
    parts.check(name)
    chosen = choose_sampler(name, parts, sampler, distilled_lora)
    for part in parts.unused:
        _log.warning("%s: its %s is not used", name, part)
    pipeline = _load_pipeline(folder, DTYPES[dtype], parts)
    _set_scheduler(name, pipeline, parts, chosen)
    digest = digest_pipeline(pipeline)
    if distilled_lora is not None:
        digest = digest_json([digest, fuse_lora(pipeline, distilled_lora)])
    freeze_pipeline(pipeline, place)
    model = DiffusionModel(pipeline, chosen, place, DTYPES[dtype], digest, commit=folder.commit)
    if image_size is not None:
        model.set_image_size(image_size)
    return model


def freeze_pipeline(pipeline: Any, place: torch.device) -> None:
    """Put a pipeline on a device, its modules frozen and in eval mode."""
    for module in modules_of(pipeline).values():
        module.requires_grad_(False)
        module.eval()
    with quiet_libraries():
        pipeline.to(place)
        # diffusers casts SDXL's autoencoder, whose activations overflow float16, there and back at each image.
        if is_sdxl(pipeline) and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.get("force_upcast"):
            pipeline.vae.to(torch.float32)
        # Decoding is convolutions alone, for whose kernels this is the native layout.
        pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)


def _load_pipeline(folder: PipelineFolder, dtype: torch.dtype, parts: Parts) -> Any:
    with quiet_libraries():  # their first import warns of packages that nothing here uses
        kinds = _find_classes(folder, parts)
        pipeline, settings = _choose_pipeline(parts)
    components = {
        part: load_tokenizer(folder, part, kind)
        if part.startswith("tokenizer")
        else load_module(folder, part, kind, dtype)
        for part, kind in kinds.items()
        if part != "scheduler"
    }
    check_fit(folder.name, components)
    scheduler = _default_scheduler() if parts.scheduler is None else load_scheduler(folder, kinds["scheduler"])
    with quiet_libraries():
        return pipeline(**components, scheduler=scheduler, **settings)


def _choose_pipeline(parts: Parts) -> tuple[Any, dict[str, Any]]:
    """Return the class of a pipeline, and what it takes beside components."""
    import diffusers

    if parts.is_sdxl:
        stated = {key: bool(value) for key, value in parts.index.items() if key == "force_zeros_for_empty_prompt"}
        return diffusers.StableDiffusionXLPipeline, {"add_watermarker": False, **stated}
    kind = diffusers.StableDiffusionPipeline
    if parts.guided_by_embedding:
        kind = diffusers.LatentConsistencyModelPipeline
    return kind, {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _find_classes(folder: PipelineFolder, parts: Parts) -> dict[str, Any]:
    """Return the class of each component. Raises `ModelError`."""
    import diffusers
    import transformers

    find = functools.partial(_find_class, folder, parts.index)
    kinds: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": find("vae", diffusers, diffusers.ModelMixin),
    }
    for suffix in ["", "_2"] if parts.is_sdxl else [""]:
        encoder, tokenizer = f"text_encoder{suffix}", f"tokenizer{suffix}"
        kinds[encoder] = find(encoder, transformers, transformers.PreTrainedModel)
        kinds[tokenizer] = find(tokenizer, transformers, transformers.PreTrainedTokenizerBase)
    if parts.scheduler is not None:
        kinds["scheduler"] = find("scheduler", diffusers, diffusers.SchedulerMixin)
    return kinds


def _default_scheduler() -> Any:
    import diffusers

    return diffusers.LCMScheduler(**STABLE_DIFFUSION_SCHEDULE)


def _find_class(folder: PipelineFolder, index: Mapping[str, Any], part: str, library: Any, base: type) -> Any:
    """Return the class of a component. Raises `ModelError` for any but a class of the library's own."""
    stated = index.get(part) or [None, None]
    kind = getattr(library, str(stated[1]), None) if stated[0] == library.__name__ else None
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ModelError(
            f"{folder.name}: its {part} is {'.'.join(map(str, stated))} by {INDEX}, and should be a class of "
            f"{library.__name__}; use a pipeline of Stable Diffusion or a latent consistency model"
        )
    return kind


def _set_scheduler(name: str, pipeline: Any, parts: Parts, sampler: Sampler) -> None:
    """Give the pipeline its sampler's scheduler, with the noise schedule that its own has."""
    import diffusers

    config = pipeline.scheduler.config
    if "beta_schedule" not in config:
        raise ModelError(
            f"{name}: its scheduler, {type(pipeline.scheduler).__name__}, states no schedule of betas, which the "
            "samplers draw with; use a Stable Diffusion pipeline that was trained with one"
        )
    # StableDiffusionPipeline corrects a scheduler that clips without a word: look at the file as well.
    if any(settings.get(key) for settings in (config, parts.scheduler or {}) for key in UNCLIPPED):
        raise ModelError(
            f"{name}: its scheduler clips or thresholds predictions, so its samples follow no Gaussian policy; "
            "set clip_sample and thresholding to false in scheduler/scheduler_config.json"
        )
    if type(pipeline.scheduler).__name__ != sampler.scheduler:
        with quiet_libraries():
            # DDIM clips unless told not to.
            pipeline.scheduler = getattr(diffusers, sampler.scheduler).from_config(config, **UNCLIPPED)
    check_noise_schedule(name, pipeline.scheduler)
