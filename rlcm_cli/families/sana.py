"""SANA (arXiv 2410.10629) and SANA-1.5 (arXiv 2501.18427): flow matching with classifier-free guidance."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcm_cli.families import Architecture, Configs, Family, Guidance, Loading, Scheduling, TextEncoding
from rlcm_cli.families import _flow as flow
from rlcm_cli.families import _sana as sana
from rlcm_cli.families._clip import with_negative
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers.flow import SAMPLER as FLOW

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.families import LoadedPipeline

PIPELINE = "SanaPipeline"
SHIFT = 3.0
"""Of the noise levels of all published models but the one for 4096 pixels, whose shift is 6."""
RECOMMENDED = Recommendation(
    FLOW.kind,
    steps=20,
    guidance_scale=sana.GUIDANCE,
    training={"sampler.noise": "flow-sde", "sampler.eta": 0.7},
    source=f"{sana.HUB}Sana_1600M_1024px_BF16_diffusers",
)
"""As the model card has it; the noise of training is that of Flow-GRPO (arXiv 2505.05470)."""

_log = logging.getLogger(__name__)


def _find_fault(configs: Configs) -> str | None:
    if sana.is_guided_by_embedding(configs.denoiser):
        return f"has the transformer of a SANA-Sprint (guidance_embeds), and is called {configs.index['_class_name']}"
    return None


def _check_scheduler(name: str, scheduler: Any, stated: Mapping[str, Any] | None) -> None:
    if not _is_solver(scheduler.config):
        flow.check_scheduler(name, scheduler, stated)
        return
    # The published one, Flow-DPM-Solver: each step depends on those before it.
    _log.warning(
        "%s: its scheduler, %s, is a multistep solver, whose steps are not those of a policy; it is drawn by Euler's "
        "steps (sampler %s) at the same shift of the noise levels, %g",
        name,
        type(scheduler).__name__,
        FLOW.kind,
        scheduler.config["flow_shift"],
    )


def _is_solver(scheduler: Mapping[str, Any]) -> bool:
    return bool(scheduler.get("use_flow_sigmas")) and "flow_shift" in scheduler


def _translate(scheduler: Mapping[str, Any]) -> Mapping[str, Any]:
    if not _is_solver(scheduler):
        return scheduler
    return {"num_train_timesteps": scheduler["num_train_timesteps"], "shift": scheduler["flow_shift"]}


def _recommend(name: str, configs: Configs, distilled_lora: str | None) -> Recommendation:
    return RECOMMENDED if distilled_lora is None else Recommendation(FLOW.kind, FLOW.steps, guidance_scale=1.0)


def _encode(model: LoadedPipeline, prompt: str) -> dict[str, Tensor]:
    """Encode a prompt as the pipeline's own `__call__` does, without the padding that it masks.

    `prompt_embeds` [tokens, width], `prompt_attention_mask` [tokens], and as many tokens of the empty prompt, of which
    one counts.
    """
    pipeline = model.pipeline
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(
        prompt,
        device=model.device,
        max_sequence_length=sana.TOKENS,
        complex_human_instruction=sana.read_instruction(type(pipeline)),
    )
    length = max(sana.count_tokens(mask), sana.count_tokens(negative_mask))
    return {
        **sana.name_text("", embeds, mask, length),
        **sana.name_text("negative_", negative, negative_mask, length),
    }


def _predict(
    model: LoadedPipeline,
    latents: Tensor,
    times: Tensor,
    conditioning: dict[str, Tensor],
    guidance_scale: float,
) -> Tensor:
    """Predict, above 1 with classifier-free guidance: v(∅) + guidance_scale · (v(c) − v(∅)) (arXiv 2207.12598)."""
    times = times * model.denoiser.config.timestep_scale
    if guidance_scale <= 1:
        return sana.call_transformer(model, latents, times, conditioning)
    both = sana.call_transformer(model, latents.repeat(2, 1, 1, 1), times.repeat(2), with_negative(conditioning))
    negative, positive = both.float().chunk(2)
    return negative + guidance_scale * (positive - negative)


FAMILY = Family(
    kind="sana",
    title="SANA",
    pipelines=(PIPELINE,),
    denoiser=sana.DENOISER,
    recognise=lambda index: sana.has_transformer(index) and not sana.is_sprint(index),
    loading=Loading(
        components=sana.COMPONENTS,
        find_fault=_find_fault,
        assemble=lambda configs: (PIPELINE, {}),
        check_fit=sana.check_fit,
    ),
    scheduling=Scheduling(
        default=(FLOW.scheduler, {"shift": SHIFT}),
        check=_check_scheduler,
        overrides={},
        read_noise=lambda model: flow.read_noise(model, lambda steps: {"num_inference_steps": steps}),
        choose_sampler=flow.choose_sampler,
        recommend=_recommend,
        translate=_translate,
        stated=("shift",),
    ),
    guidance=Guidance(
        is_embedded=lambda config: False,
        count_predictions=lambda config, guidance_scale: 1 + (guidance_scale > 1),
        recommend=lambda config: sana.GUIDANCE,
    ),
    latents=sana.LATENTS,
    text=TextEncoding(_encode, sana.count_cut_prompts, sana.stand_in, overflows_float16=True),
    autoencoder=sana.AUTOENCODER,
    predict=_predict,
    lora_targets=sana.LORA_TARGETS,
    names=sana.NAMES,
    architectures={
        "sana-1.6b": Architecture(
            partial(sana.build_pipeline, PIPELINE, (FLOW.scheduler, {"shift": SHIFT}), sana.SIZE_16B),
            sana.build_text_encoders,
            RECOMMENDED,
        )
    },
)
