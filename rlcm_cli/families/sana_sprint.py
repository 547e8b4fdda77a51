"""SANA-Sprint (arXiv 2503.09641): SANA, distilled to one to four steps by continuous-time consistency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import Architecture, Configs, Family, Guidance, Loading, Scheduling, TextEncoding
from rlcm_cli.families import _sana as sana
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise, Sampler
from rlcm_cli.samplers.scm import SAMPLER as SCM

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

PIPELINE = "SanaSprintPipeline"
RECOMMENDED = {
    size: Recommendation(
        SCM.kind,
        steps=2,
        guidance_scale=sana.GUIDANCE,
        source=f"{sana.HUB}Sana_Sprint_{size.upper()}_1024px_diffusers",
    )
    for size in ("0.6b", "1.6b")
}
"""As the model cards have it, and `SanaSprintPipeline`: for one to four steps, two by default."""


def _find_fault(configs: Configs) -> str | None:
    if not sana.is_guided_by_embedding(configs.denoiser):
        return "is called a SANA-Sprint, but its transformer has no guidance embedding (guidance_embeds)"
    return None


def _check_scheduler(name: str, scheduler: Any, stated: Mapping[str, Any] | None) -> None:
    config = scheduler.config
    scale = config.get("sigma_data")
    if config.get("prediction_type") != "trigflow" or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ModelError(
            f"{name}: its scheduler, {type(scheduler).__name__}, is not one of continuous-time consistency "
            f"(prediction_type trigflow, and a sigma_data above 0); use the scheduler that belongs to the model "
            f"({SCM.scheduler})"
        )


def _choose_sampler(name: str, configs: Configs, wanted: Sampler | None, distilled_lora: str | None) -> Sampler:
    if wanted not in (None, SCM):
        raise ModelError(
            f"{name}: is a SANA-Sprint, a continuous-time consistency model, and cannot be drawn with the sampler "
            f"'{wanted.kind}'; use --sampler {SCM.kind}, or leave the option out"
        )
    if distilled_lora is not None:
        raise ModelError(
            f"{name}: is distilled to a few steps already; leave the distilled LoRA '{distilled_lora}' out"
        )
    return SCM


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    return RECOMMENDED["0.6b" if configs.denoiser.get("num_layers") == sana.SIZE_06B["num_layers"] else "1.6b"]


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt as the pipeline's own `__call__` does, without the padding that it masks.

    `prompt_embeds` [tokens, width] and `prompt_attention_mask` [tokens].
    """
    pipeline = model.pipeline
    embeds, mask = pipeline.encode_prompt(
        prompt,
        device=model.device,
        max_sequence_length=sana.TOKENS,
        complex_human_instruction=sana.read_instruction(type(pipeline)),
    )
    return sana.name_text("", embeds, mask, sana.count_tokens(mask))


def _predict(
    model: LoadedPipeline,
    latents: Tensor,
    times: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    """Predict with guidance, which the transformer takes as an embedding."""
    import torch

    embeds = conditioning["prompt_embeds"]
    # Rounded before it is scaled, as in the pipeline.
    guidance = torch.full((len(latents),), guidance_scale, dtype=embeds.dtype, device=embeds.device)
    guidance = guidance * model.denoiser.config.guidance_embeds_scale
    return sana.call_transformer(model, latents, times, conditioning, guidance=guidance)


FAMILY = Family(
    kind="sana-sprint",
    title="SANA-Sprint",
    pipelines=(PIPELINE,),
    denoiser=sana.DENOISER,
    recognise=lambda index: sana.has_transformer(index) and sana.is_sprint(index),
    loading=Loading(
        components=sana.COMPONENTS,
        find_fault=_find_fault,
        assemble=lambda configs: (PIPELINE, {}),
        check_fit=sana.check_fit,
    ),
    scheduling=Scheduling(
        default=(SCM.scheduler, {}),
        check=_check_scheduler,
        overrides={},
        read_noise=lambda model: Noise(model.pipeline.scheduler.config),
        choose_sampler=_choose_sampler,
        recommend=_recommend,
    ),
    guidance=Guidance(
        sana.is_guided_by_embedding,
        count_predictions=lambda config, guidance_scale: 1,
        recommend=lambda config: sana.GUIDANCE,
    ),
    latents=sana.LATENTS,
    text=TextEncoding(_encode, sana.count_cut_prompts, sana.stand_in, overflows_float16=True),
    autoencoder=sana.AUTOENCODER,
    predict=_predict,
    lora_targets=sana.LORA_TARGETS,
    names=sana.NAMES,
    architectures={
        f"sana-sprint-{size}": Architecture(
            partial(
                sana.build_pipeline,
                PIPELINE,
                (SCM.scheduler, {}),
                {**settings, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
            ),
            sana.build_text_encoders,
            RECOMMENDED[size],
        )
        for size, settings in (("0.6b", sana.SIZE_06B), ("1.6b", sana.SIZE_16B))
    },
)
