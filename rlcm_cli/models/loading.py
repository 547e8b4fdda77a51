"""Find a pipeline, decide how it is sampled, load it frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_json, digest_tensors
from rlcm_cli.errors import ModelError
from rlcm_cli.models.conditioning import is_sdxl
from rlcm_cli.models.diffusion import DiffusionModel, PolicyKind
from rlcm_cli.models.embedded import RECOMMENDED_GUIDANCE, RECOMMENDED_STEPS, embedded_folder
from rlcm_cli.models.libraries import quiet_libraries, summarise
from rlcm_cli.models.lora import fuse_lora

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCHEDULERS: dict[PolicyKind, str] = {"lcm": "LCMScheduler", "ddim": "DDIMScheduler", "tcd": "TCDScheduler"}
UNCLIPPED = {"clip_sample": False, "thresholding": False}
STABLE_DIFFUSION_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The schedule of all Stable Diffusion models, for folders that state none (early LCM_Dreamshaper_v7)."""


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
    source = str(embedded_folder(name) or name)
    with quiet_libraries(), _explained(name):
        parts = _read_parts(source, revision)
    parts.check(name)
    kind = resolve_policy(name, parts, policy, distilled_lora)
    with quiet_libraries(), _explained(name):
        pipeline = _load_pipeline(source, revision, DTYPES[dtype], parts)
    modules = _modules(pipeline)
    for module in modules.values():
        lacking = [key for key, parameter in module.named_parameters() if parameter.is_meta]
        if lacking:
            raise ModelError(
                f"{name}: the weights of its {type(module).__name__} lack '{lacking[0]}'; get the model's files anew"
            )
    _set_scheduler(name, pipeline, parts, kind)
    digest = _digest_pipeline(pipeline)
    if distilled_lora is not None:
        digest = digest_json([digest, fuse_lora(pipeline, distilled_lora)])
    freeze_pipeline(pipeline, place)
    model = DiffusionModel(pipeline, kind, place, DTYPES[dtype], digest)
    if image_size is not None:
        model.set_image_size(image_size)
    return model


def freeze_pipeline(pipeline: Any, place: torch.device) -> None:
    """Put a pipeline on a device, its modules frozen and in eval mode."""
    for module in _modules(pipeline).values():
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
    with quiet_libraries(), _explained(name):
        parts = _read_parts(str(embedded_folder(name) or name), revision)
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
        elif self.is_sdxl and self.index.get("text_encoder", [None])[-1] is None:
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


def _read_parts(source: str, revision: str | None) -> Parts:
    from diffusers import DiffusionPipeline, LCMScheduler, UNet2DConditionModel

    index = DiffusionPipeline.load_config(source, revision=revision)
    stated = {part: index.get(part, [None, None])[1] for part in ("unet", "scheduler")}
    unet, scheduler = {}, None
    if stated["unet"] == UNet2DConditionModel.__name__:
        unet = UNet2DConditionModel.load_config(source, subfolder="unet", revision=revision)
    if stated["scheduler"]:
        # Any scheduler class reads any other's file.
        settings = LCMScheduler.load_config(source, subfolder="scheduler", revision=revision)
        scheduler = {**settings, "_class_name": stated["scheduler"]}
    return Parts(index, unet, scheduler)


def _load_pipeline(source: str, revision: str | None, dtype: torch.dtype, parts: Parts) -> Any:
    import diffusers

    settings: dict[str, Any] = {"add_watermarker": False}
    kind = diffusers.StableDiffusionXLPipeline
    if not parts.is_sdxl:
        settings = {"safety_checker": None, "requires_safety_checker": False}
        kind = diffusers.StableDiffusionPipeline
        if parts.guided_by_embedding:
            kind = diffusers.LatentConsistencyModelPipeline
    if parts.scheduler is None:
        settings["scheduler"] = diffusers.LCMScheduler(**STABLE_DIFFUSION_SCHEDULE)
    return kind.from_pretrained(
        source, revision=revision, torch_dtype=dtype, use_safetensors=True, feature_extractor=None, **settings
    )


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


def _modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    names = ["unet", "vae", "text_encoder"] + ["text_encoder_2"] * is_sdxl(pipeline)
    return {name: getattr(pipeline, name) for name in names}


def _digest_pipeline(pipeline: Any) -> str:
    weights = {
        f"{part}.{name}": tensor
        for part, module in _modules(pipeline).items()
        for name, tensor in module.state_dict().items()
    }
    # Names with an underscore say which diffusers wrote the file.
    settings = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    if is_sdxl(pipeline):
        settings["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
    return digest_tensors(weights, settings)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        if Path(name).exists():
            raise ModelError(
                f"{name}: is no diffusers pipeline of Stable Diffusion or a latent consistency model "
                f"({summarise(error)}); it needs model_index.json, unet, vae, text_encoder, tokenizer, all with "
                "safetensors weights"
            ) from error
        raise ModelError(
            f"model '{name}' is no local folder and could not be loaded from the hub ({summarise(error)}); check the "
            "name and the network, or use the embedded model: --model emoji-lcm"
        ) from error
