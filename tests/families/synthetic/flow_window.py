"""A sampler for tests: flow matching that predicts and adds noise again at chosen calls, and is Euler's elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rlcm_cli.samplers import Noise, PipelineCall, Sampler, SamplerSettings

if TYPE_CHECKING:
    from rlcm_cli.core.schedule import Schedule


class FlowWindowSettings(SamplerSettings):
    """Flow matching with noise at chosen calls only."""

    kind: Literal["flow-window"] = "flow-window"
    window: tuple[int, ...] = (1, 2)
    """Calls that add noise, from 0."""


def _schedule(settings: FlowWindowSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    import torch

    from rlcm_cli.core.schedule import Schedule

    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    shift = float(noise.scheduler["shift"])
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    now, then = sigmas[:-1], sigmas[1:]
    drawn = torch.tensor([call in settings.window for call in range(steps)]) & (then > 0)
    return Schedule(
        1000 * now,
        1000 * then,
        latents_coef=torch.where(drawn, 1 - then, 1.0),
        output_coef=torch.where(drawn, -now * (1 - then), then - now),
        std=torch.where(drawn, then, 0.0),
        initial_scale=1.5,
    )


def _in_diffusers(settings: FlowWindowSettings, noise: Noise, steps: int) -> PipelineCall | None:
    return None


def _find_no_actions(settings: FlowWindowSettings, steps: int) -> tuple[str, str] | None:
    return ("sampler.window is empty", "name a call") if not settings.window else None


SAMPLER = Sampler(
    settings=FlowWindowSettings,
    levels="sigma",
    scheduler="FlowMatchEulerDiscreteScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=_find_no_actions,
    noise_on_last_call=False,
    folds_lora=True,
    fits_pretraining=False,
    distilled=False,
    steps=5,
)
