"""How an exported LoRA is used in ComfyUI: the values that its nodes ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlcm_cli.config import ModelSettings, SampleSettings
from rlcm_cli.models.export import name_architecture
from rlcm_cli.models.latent_model import LatentModel

DENOISER_FILES = {
    "SimianLuo/LCM_Dreamshaper_v7": "LCM_Dreamshaper_v7_4k.safetensors",
    "black-forest-labs/FLUX.2-klein-4B": "flux-2-klein-4b.safetensors",
}
"""Base model → the file of its repository that its authors publish for others, where it is its denoiser only."""


def describe_use(model: LatentModel, settings: ModelSettings, sample: SampleSettings) -> Mapping[str, str]:
    """Return what to set → to which value; empty where ComfyUI does not know the denoiser's architecture."""
    architecture = name_architecture(model)
    if architecture is None:
        return {}
    texts = [
        part
        for part in model.family.modules
        if model.family.loading.components[part] == "transformers" and getattr(model.pipeline, part) is not None
    ]
    file = DENOISER_FILES.get(settings.name, f"{model.family.denoiser}/diffusion_pytorch_model.safetensors")
    use = {
        "Load Diffusion Model": f"{file} of {_name(settings.name)} ({architecture})",
        "CLIP and VAE": f"those of the same model, from its folders {', '.join(texts)} and vae",
    }
    if settings.distilled_lora is not None:
        use["LoRA before this one"] = f"{_name(settings.distilled_lora)}, at strength 1"
    use["LoRA strength"] = "1"
    use |= model.sampler.comfyui or {"sampler_name": f"one for {model.sampler.kind}, which is an extension"}
    if settings.image_sides is not None:
        height, width = settings.image_sides
        use["Empty Latent Image"] = f"width {width}, height {height}"
    use["steps"] = str(sample.steps)
    guided_twice = model.count_predictions(sample.guidance_scale) > 1
    use["cfg"] = f"{sample.guidance_scale:g}" if guided_twice else "1"
    return {**use, **name_guidance(model, sample)}


def name_guidance(model: LatentModel, sample: SampleSettings) -> Mapping[str, str]:
    """Return the nodes of ComfyUI that are particular to the model's family → what they are set to."""
    return model.family.names.comfyui(model.pipeline, sample.guidance_scale)


def _name(place: str) -> str:
    """Return a hub id as it is, and the last part of a path."""
    return Path(place).resolve().name if Path(place).exists() else place
