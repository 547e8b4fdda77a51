"""What a pipeline's configurations say of it, read before its weights: what it is, and how it is drawn by nature.

Nothing here needs torch or diffusers, so that a configuration can be settled without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlcm_cli.errors import ModelError
from rlcm_cli.models.embedded import RECOMMENDED_GUIDANCE, RECOMMENDED_STEPS
from rlcm_cli.models.folders import PipelineFolder, find_pipeline
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import SAMPLERS, Sampler, find_sampler
from rlcm_cli.samplers.ddim import SAMPLER as DDIM
from rlcm_cli.samplers.lcm import SAMPLER as LCM

KNOWN_PARTS = {
    *("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    *("safety_checker", "feature_extractor", "image_encoder"),
}
"""Components that are loaded, and those that change no image of a prompt."""


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


def recommend(
    name: str, *, revision: str | None, sampler: str | None = None, distilled_lora: str | None = None
) -> Recommendation:
    """Say how a pipeline is drawn unless asked otherwise, by a sampler of a kind or, of None, by its own.

    An embedded model is drawn as its card says, others as diffusers' pipelines and schedulers do. What is distilled
    into a plain U-Net (LCM-LoRA, TCD-LoRA) is drawn without guidance, which was distilled with it. Reads only
    configurations; raises as `load_model`.
    """
    parts = read_parts(find_pipeline(name, revision, weights=False))
    parts.check(name)
    natural = choose_sampler(name, parts, None, None)
    chosen = choose_sampler(name, parts, sampler, distilled_lora)
    guidance = RECOMMENDED_GUIDANCE.get(name, parts.recommended_guidance)
    if chosen.distilled and not parts.guided_by_embedding:
        guidance = 1.0
    steps = RECOMMENDED_STEPS.get(name, chosen.steps) if chosen == natural else chosen.steps
    return Recommendation(chosen.kind, steps, guidance)


def choose_sampler(name: str, parts: Parts, asked: str | None, distilled_lora: str | None) -> Sampler:
    """Decide how a pipeline is drawn, unless asked for: by its U-Net, then its scheduler, then the LoRA.

    Raises `ModelError` for what draws no image: another sampler or a second distillation on an LCM's own U-Net. A
    plain U-Net takes any sampler that is asked for, since distilled weights merged into it cannot be told from its
    own. Raises `ConfigError` for a sampler that does not exist.
    """
    wanted = None if asked is None else find_sampler(asked)
    if parts.guided_by_embedding:
        if wanted not in (None, LCM):
            raise ModelError(
                f"{name}: is a latent consistency model, its U-Net has a guidance embedding (time_cond_proj_dim), and "
                f"cannot be drawn with the sampler '{asked}'; use --sampler {LCM.kind}, or a plain Stable Diffusion "
                "pipeline"
            )
        if distilled_lora is not None:
            raise ModelError(
                f"{name}: is a latent consistency model already; leave the distilled LoRA '{distilled_lora}' out, or "
                "fuse it into the plain Stable Diffusion pipeline that it was made for"
            )
        return LCM
    if wanted is not None:
        return wanted
    own = (parts.scheduler or {}).get("_class_name")
    distilled = next((one for one in SAMPLERS.values() if one.distilled and one.scheduler == own), None)
    return distilled or (LCM if distilled_lora is not None else DDIM)


def read_parts(folder: PipelineFolder) -> Parts:
    """Read the configurations of a pipeline. Raises `ModelError`."""
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
