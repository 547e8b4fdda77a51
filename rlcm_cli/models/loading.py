"""Find a pipeline, decide how it is sampled, load it frozen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.models.components import check_fit, check_noise_schedule, load_module, load_scheduler, load_tokenizer
from rlcm_cli.models.conditioning import is_sdxl
from rlcm_cli.models.diffusion import DiffusionModel, PolicyKind
from rlcm_cli.models.embedded import RECOMMENDED_GUIDANCE, RECOMMENDED_STEPS
from rlcm_cli.models.fingerprint import digest_pipeline, modules_of
from rlcm_cli.models.folders import INDEX, PipelineFolder, find_pipeline
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import fuse_lora

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCHEDULERS: dict[PolicyKind, str] = {"lcm": "LCMScheduler", "ddim": "DDIMScheduler", "tcd": "TCDScheduler"}
UNCLIPPED = {"clip_sample": False, "thresholding": False}
KNOWN_PARTS = {
    *("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    *("safety_checker", "feature_extractor", "image_encoder"),
}
"""Components that are loaded, and those that change no image of a prompt."""
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
    policy: PolicyKind | Literal["auto"] = "auto",
    distilled_lora: str | None = None,
    image_size: int | None = None,
) -> DiffusionModel:
    """Load an embedded model, a local pipeline folder or a hub id; the U-Net comes frozen and in eval mode.

    Stable Diffusion 1.x, 2.x and XL, and latent consistency models of their sizes. `distilled_lora` (a file, folder
    or hub id, such as LCM-LoRA or TCD-LoRA) is fused into the weights. `policy` "auto" is that of
    `resolve_policy`; the pipeline's scheduler becomes the policy's, with the noise schedule of the folder's own.
    `image_size`: pixels along each side, None for the pipeline's own.

    Raises `ModelError` for what is not there, cannot be reached, is no such pipeline, or does not fit the policy.
    """
    place = select_device(device)
    folder = find_pipeline(name, revision)
    parts = _read_parts(folder)
    parts.check(name)
    kind = resolve_policy(name, parts, policy, distilled_lora)
    for part in parts.unused:
        _log.warning("%s: its %s is not used", name, part)
    pipeline = _load_pipeline(folder, DTYPES[dtype], parts)
    _set_scheduler(name, pipeline, parts, kind)
    digest = digest_pipeline(pipeline)
    if distilled_lora is not None:
        digest = digest_json([digest, fuse_lora(pipeline, distilled_lora)])
    freeze_pipeline(pipeline, place)
    model = DiffusionModel(pipeline, kind, place, DTYPES[dtype], digest, commit=folder.commit)
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


def recommend_sampling(
    name: str,
    *,
    revision: str | None,
    policy: PolicyKind | Literal["auto"] = "auto",
    distilled_lora: str | None = None,
) -> dict[str, float]:
    """Say how a pipeline is drawn unless asked otherwise: `steps`, `guidance_scale` and, of ddim, `eta`.

    Of an embedded model as its card says, of others as diffusers' pipelines and schedulers do. What is distilled into
    a plain U-Net (LCM-LoRA, TCD-LoRA) is drawn without guidance, which was distilled with it. Reads configurations
    alone; raises as `load_model`.
    """
    parts = _read_parts(find_pipeline(name, revision, weights=False))
    parts.check(name)
    kind = resolve_policy(name, parts, policy, distilled_lora)
    guidance = RECOMMENDED_GUIDANCE.get(name, parts.recommended_guidance)
    if kind == "ddim":
        return {"steps": RECOMMENDED_STEPS.get(name, 50), "guidance_scale": guidance, "eta": 0.0}
    if not parts.guided_by_embedding:
        guidance = 1.0
    return {"steps": 4, "guidance_scale": guidance}


@dataclass(frozen=True)
class Parts:
    """What the configurations of a pipeline say, read before its weights."""

    index: dict[str, Any]
    """model_index.json."""
    unet: dict[str, Any]
    scheduler: dict[str, Any] | None
    """None where the index states none."""

    @property
    def guided_by_embedding(self) -> bool:
        """Whether the U-Net takes the guidance scale as an embedding: a latent consistency model."""
        return bool(self.unet.get("time_cond_proj_dim"))

    @property
    def is_sdxl(self) -> bool:
        """Whether there is a second text encoder."""
        return "text_encoder_2" in self.index

    @property
    def unused(self) -> list[str]:
        """Components that would change an image, and that none of the pipelines here has a place for."""
        return [
            part
            for part, stated in self.index.items()
            if isinstance(stated, list) and _class_of(self.index, part) and part not in KNOWN_PARTS
        ]

    @property
    def recommended_guidance(self) -> float:
        """Guidance scale that diffusers' pipeline has by default."""
        if self.guided_by_embedding:
            return 8.5
        return 5.0 if self.is_sdxl else 7.5

    def check(self, name: str) -> None:
        """Raise `ModelError` for pipelines of another make than text to image with a Stable Diffusion U-Net."""
        fault = None
        if not self.unet:
            fault = f"is a {self.index.get('_class_name')}, without the U-Net of Stable Diffusion"
        elif self.is_sdxl and _class_of(self.index, "text_encoder") is None:
            fault = "is SDXL's refiner, which draws no image of its own"
        elif self.unet.get("in_channels") != self.unet.get("out_channels"):
            fault = (
                f"draws no image from text alone: its U-Net takes {self.unet.get('in_channels')} channels and gives "
                f"{self.unet.get('out_channels')}, as for inpainting or depth"
            )
        if fault:
            raise ModelError(
                f"{name}: {fault}; use a text-to-image pipeline of Stable Diffusion 1.x, 2.x, XL or an LCM"
            )


def resolve_policy(
    name: str, parts: Parts, asked: PolicyKind | Literal["auto"], distilled_lora: str | None
) -> PolicyKind:
    """Decide how a pipeline is sampled, unless asked for: by its U-Net, then its scheduler, then the LoRA.

    Raises `ModelError` for what draws no image: another policy or a second distillation on an LCM's own U-Net. A plain
    U-Net takes any policy that is asked for, since distilled weights merged into it cannot be told from its own.
    """
    if parts.guided_by_embedding:
        if asked not in ("auto", "lcm"):
            raise ModelError(
                f"{name}: is a latent consistency model, its U-Net has a guidance embedding (time_cond_proj_dim), and "
                f"cannot be sampled with the policy '{asked}'; use --policy lcm, or a plain Stable Diffusion pipeline"
            )
        if distilled_lora is not None:
            raise ModelError(
                f"{name}: is a latent consistency model already; leave the distilled LoRA '{distilled_lora}' out, or "
                "fuse it into the plain Stable Diffusion pipeline that it was made for"
            )
        return "lcm"
    if asked != "auto":
        return asked
    own = (parts.scheduler or {}).get("_class_name")
    if own in (SCHEDULERS["lcm"], SCHEDULERS["tcd"]):
        return "lcm" if own == SCHEDULERS["lcm"] else "tcd"
    return "lcm" if distilled_lora is not None else "ddim"


def _read_parts(folder: PipelineFolder) -> Parts:
    index = folder.read_index()
    unet, scheduler = {}, None
    if _class_of(index, "unet") == "UNet2DConditionModel":
        unet = folder.read_config("unet")
    if _class_of(index, "scheduler"):
        settings = folder.read_config("scheduler", "scheduler_config.json")
        scheduler = {**settings, "_class_name": _class_of(index, "scheduler")}
    return Parts(index, unet, scheduler)


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    name = (index.get(part) or [None, None])[1]
    return name if isinstance(name, str) else None


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


def _set_scheduler(name: str, pipeline: Any, parts: Parts, policy: PolicyKind) -> None:
    """Give the pipeline its policy's scheduler, with the noise schedule that its own has."""
    import diffusers

    config = pipeline.scheduler.config
    if "beta_schedule" not in config:
        raise ModelError(
            f"{name}: its scheduler, {type(pipeline.scheduler).__name__}, states no schedule of betas, which the "
            "policies draw with; use a Stable Diffusion pipeline that was trained with one"
        )
    # StableDiffusionPipeline corrects a scheduler that clips without a word: look at the file as well.
    if any(settings.get(key) for settings in (config, parts.scheduler or {}) for key in UNCLIPPED):
        raise ModelError(
            f"{name}: its scheduler clips or thresholds predictions, so its samples follow no Gaussian policy; "
            "set clip_sample and thresholding to false in scheduler/scheduler_config.json"
        )
    if type(pipeline.scheduler).__name__ != SCHEDULERS[policy]:
        with quiet_libraries():
            # DDIM clips unless told not to.
            pipeline.scheduler = getattr(diffusers, SCHEDULERS[policy]).from_config(config, **UNCLIPPED)
    check_noise_schedule(name, pipeline.scheduler)
