"""What the tests of families with a transformer share: their tiny pipelines, LoRAs of them, and their own times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from model_helpers import attach_tiny, draw, load_tiny, shake_lora
from safetensors.torch import load_file
from torch import Tensor

from rlcm_cli.core.noise import seed_generator
from rlcm_cli.models.export import describe_call, write_kohya
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.lora import load_foreign_lora
from rlcm_cli.models.lora_binding import adapted_layers

SIZE = (16, 24)
PROMPTS, SEEDS = ("cat", "a dog on blue"), (5, 7)


def draw_both(
    folder: Path, *, steps: int, guidance_scale: float, dtype: str = "float32", **sampler: Any
) -> tuple[Tensor, Tensor]:
    """Images, uint8 [B, 3, H, W], drawn here and by the pipeline's own `__call__`, without noise."""
    model = load_tiny(folder, dtype, SIZE)
    settings = model.sampler.drawing_settings().model_copy(update=sampler)
    call = describe_call(model, settings, steps=steps, guidance_scale=guidance_scale)
    arguments = {**call.arguments, "height": SIZE[0], "width": SIZE[1], "output_type": "pt"}
    with torch.no_grad(), quiet_libraries():
        plain = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
        plain.scheduler = type(plain.scheduler).from_config(plain.scheduler.config, **call.settings)
        plain.set_progress_bar_config(disable=True)
        drawn = [
            plain(prompt=prompt, generator=seed_generator(seed), **arguments).images[0]
            for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
        ]
    images = draw(model, PROMPTS, SEEDS, steps=steps, guidance_scale=guidance_scale, sampler=settings).images
    return images, torch.stack(drawn).float().mul(255).round().to(torch.uint8)


def largest_difference(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def record_calls(model: LatentModel, monkeypatch: Any) -> list[Mapping[str, Any]]:
    """Record what the denoiser is called with, by name."""
    calls: list[Mapping[str, Any]] = []
    forward = type(model.denoiser).forward

    def recorded(self: Any, *args: Any, **named: Any) -> Any:
        calls.append({**dict(enumerate(args)), **named})
        return forward(self, *args, **named)

    monkeypatch.setattr(type(model.denoiser), "forward", recorded)
    return calls


def check_comfyui_names(folder: Path, out: Path, table: Mapping[str, Sequence[str]], targets: Sequence[str]) -> None:
    """Check kohya's file of a LoRA on `targets` against ComfyUI's names.

    `table`: key → the layers here whose outputs follow each other there, as ComfyUI's own mapping says.
    """
    model = load_tiny(folder, image_size=SIZE)
    attach_tiny(model, target_modules=targets)
    shake_lora(model)
    file = write_kohya(model, out / "x.safetensors", torch.float32, title="x")
    tensors = load_file(file)
    keys = {key.partition(".")[0] for key in tensors}
    assert keys == table.keys()
    layers = dict(adapted_layers(model.denoiser, "policy"))
    assert {name for names in table.values() for name in names} >= layers.keys()
    for key, names in table.items():
        found = {role: tensors[f"{key}.{role}"] for role in ("lora_up.weight", "lora_down.weight", "alpha")}
        strength = found["alpha"] / len(found["lora_down.weight"])
        change = strength * found["lora_up.weight"] @ found["lora_down.weight"]
        wanted = torch.cat(
            [
                layers[name].get_delta_weight("policy")
                if name in layers
                else torch.zeros_like(model.denoiser.get_submodule(name).weight)
                for name in names
            ]
        )
        torch.testing.assert_close(change, wanted.detach(), rtol=1e-5, atol=1e-6)

    other = load_tiny(folder, image_size=SIZE)
    load_foreign_lora(other, str(file), 1.0)
    assert largest_difference(*(draw(one, PROMPTS, SEEDS).images for one in (model, other))) <= 1
