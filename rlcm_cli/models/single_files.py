"""Checkpoints of a whole model in one file, as A1111, ComfyUI and kohya keep them: how to make a folder of one."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

LAYOUTS = {
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "conditioner.embedders.0.": "StableDiffusionXLPipeline",
    "cond_stage_model.": "StableDiffusionPipeline",
}
"""Prefix of a text encoder's tensors → the pipeline of diffusers that such a file is."""
UNET_PREFIX = "model.diffusion_model."
LORA_MARKS = ("lora_down", "lora_up", "lora_A", "lora_B", ".hada_", ".lokr_")


def explain_single_file(name: str, file: Path) -> str:
    """Return the line that says why a file is not loaded as a model, and what to do with it."""
    if not file.exists():
        return f"model '{name}': there is no such file; check the path, or use the embedded model: --model emoji-lcm"
    if file.suffix != ".safetensors":
        return (
            f"{name}: is not a folder, and a file other than safetensors is not read, as a pickle could run code; get "
            "the model as .safetensors, or as a folder of diffusers"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
    except (OSError, SafetensorError) as error:
        return f"{name}: is damaged or not safetensors ({error}); download it again"
    if any(mark in key for key in keys for mark in LORA_MARKS):
        return (
            f"{name}: is a LoRA, not a model; use it with `generate --lora`, and the model it was made for as --model"
        )
    for prefix, pipeline in LAYOUTS.items():
        if any(key.startswith(prefix) for key in keys) and any(key.startswith(UNET_PREFIX) for key in keys):
            return (
                f"{name}: is a whole model in one file; a folder of diffusers is needed: where there is a network, "
                f"make one by `python -c \"from diffusers import {pipeline} as P; P.from_single_file('{file}')"
                f".save_pretrained('{file.stem}')\"`, then use --model {file.stem}"
            )
    if any(key.startswith(UNET_PREFIX) for key in keys):
        return f"{name}: holds a U-Net without its text encoders; use a checkpoint of the whole model"
    return f"{name}: is not a model of Stable Diffusion in one file; name a pipeline folder or a hub id"
