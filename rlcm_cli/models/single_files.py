"""Checkpoints of a whole model in one file, as A1111, ComfyUI and kohya keep them: how to make a folder of one."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlcm_cli.families import FAMILIES

DENOISER_PREFIX = "model.diffusion_model."
LONE_DENOISER = ("conv_in.", "transformer_blocks.", "down_blocks.")
"""Prefixes by which diffusers' own names show that a file is a denoiser only."""
DISTILLED_ADVICE = (
    "use the LoRA of the same release, with the pipeline that it was made for as --model: --set "
    "model.distilled_lora=OWNER/NAME/FILE.safetensors, or put the file into a folder of a whole pipeline "
    "(docs/models.md)"
)
LORA_MARKS = ("lora_down", "lora_up", "lora_A", "lora_B", ".hada_", ".lokr_")


def explain_single_file(name: str, file: Path) -> str:
    """Return the line that says why a file is not loaded as a model, and what to do with it."""
    if not file.exists() and len(file.parts) == 3 and not file.is_absolute():
        return (
            f"model '{name}': there is no such file here, and a file of a repository of the hub is not a pipeline; "
            f"check the path, or, of a LoRA that few steps were distilled into, use --set model.distilled_lora={name} "
            "with the pipeline that it was made for as --model"
        )
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
    has_denoiser = any(key.startswith(DENOISER_PREFIX) for key in keys)
    for family in FAMILIES.values():
        if has_denoiser and any(key.startswith(family.names.single_file) for key in keys):
            pipeline = family.pipelines[0]
            return (
                f"{name}: is a whole model in one file; a folder of diffusers is needed: where there is a network, "
                f"make one by `python -c \"from diffusers import {pipeline} as P; P.from_single_file('{file}')"
                f".save_pretrained('{file.stem}')\"`, then use --model {file.stem}"
            )
    if has_denoiser or any(key.startswith(LONE_DENOISER) for key in keys):
        return f"{name}: holds a denoiser without its text encoders; {DISTILLED_ADVICE}"
    return f"{name}: is not a model of a known family in one file; name a pipeline folder or a hub id"
