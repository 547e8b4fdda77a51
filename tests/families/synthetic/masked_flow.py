"""A family for tests: a transformer, flow matching, texts of any length with a mask, and AutoencoderDC.

Its transformer is fed latents as a list of images, as some are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import (
    Autoencoder,
    Configs,
    Family,
    ForeignNames,
    Guidance,
    Latents,
    LoadedPipeline,
    Loading,
    Scheduling,
    TextEncoding,
    class_of,
)
from rlcm_cli.families import _autoencoder as vae
from rlcm_cli.samplers import SAMPLERS, Noise, Sampler

if TYPE_CHECKING:
    from torch import Tensor

SCALE = 2


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    import torch

    tokens = torch.tensor([model.pipeline.tokenizer(prompt).input_ids], device=model.device)
    embeds = model.pipeline.text_encoder(tokens)[0][0]
    return {"prompt_embeds": embeds, "prompt_mask": torch.ones(len(embeds), dtype=torch.bool)}


def _predict(
    model: LoadedPipeline, latents: Tensor, times: Tensor, conditioning: dict[str, Tensor], guidance_scale: float
) -> Tensor:
    import torch

    fed = torch.stack(list(latents))
    output: Tensor = model.denoiser(
        fed,
        encoder_hidden_states=conditioning["prompt_embeds"],
        encoder_attention_mask=conditioning["prompt_mask"],
        timestep=times.to(model.dtype),
        return_dict=False,
    )[0]
    return output


def _own_size(pipeline: Any) -> tuple[int, int]:
    side = pipeline.transformer.config.sample_size * SCALE
    return side, side


def _set_size(pipeline: Any, height: int, width: int) -> None:
    if height % SCALE or width % SCALE:
        raise ModelError(f"images of {width} x {height} pixels: use even numbers")


def _shape(pipeline: Any, height: int, width: int) -> tuple[int, int, int]:
    return pipeline.transformer.config.in_channels, height // SCALE, width // SCALE


def _choose_sampler(name: str, configs: Configs, wanted: Sampler | None, distilled_lora: str | None) -> Sampler:
    return wanted or SAMPLERS["flow-window"]


def _stand_in(model: LoadedPipeline) -> dict[str, Tensor]:
    import torch

    width = model.denoiser.config.caption_channels
    return {"prompt_embeds": torch.randn(8, width), "prompt_mask": torch.ones(8, dtype=torch.bool)}


def _spell(name: str, config: Mapping[str, Any], names: Mapping[str, object]) -> str:
    return name


FAMILY = Family(
    kind="masked-flow",
    title="Masked flow",
    pipelines=("SanaPipeline",),
    denoiser="transformer",
    recognise=lambda index: class_of(index, "transformer") == "SanaTransformer2DModel",
    loading=Loading(
        components={
            "transformer": "diffusers",
            "vae": "diffusers",
            "text_encoder": "transformers",
            "tokenizer": "transformers",
        },
        find_fault=lambda configs: None,
        assemble=lambda configs: ("SanaPipeline", {}),
        check_fit=lambda name, parts: None,
    ),
    scheduling=Scheduling(
        default=("FlowMatchEulerDiscreteScheduler", {}),
        check=lambda name, scheduler, stated: None,
        overrides={},
        read_noise=lambda model: Noise(model.pipeline.scheduler.config),
        choose_sampler=_choose_sampler,
    ),
    guidance=Guidance(lambda config: False, lambda config, scale: 1, lambda config: 1.0),
    latents=Latents(_own_size, _set_size, _shape),
    text=TextEncoding(_encode, lambda pipeline, prompts: (0, 77), _stand_in),
    autoencoder=Autoencoder(
        lambda model, latents: vae.decode(model.pipeline.vae, latents),
        lambda model, images: vae.encode(model.pipeline.vae, images),
        needs_float32=lambda config: False,
    ),
    predict=_predict,
    lora_targets=("to_q", "to_k", "to_v"),
    names=ForeignNames("lora_unet", _spell, lambda pipeline: None),
)
