"""The sampling of flow matching models (arXiv 2210.02747, 2403.03206), with noise added so that it is a policy.

With σ now and σ' next, a noised latent is (1 − σ) x₀ + σ ε and the model predicts the velocity v = ε − x₀. At η = 0
every kind is Euler's step, x + (σ' − σ) v.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, PipelineCall, Sampler, Sigmas
from rlcm_cli.samplers._window import WindowSettings, find_no_noise, spread_eta

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import Schedule

NoiseKind = Literal["cps", "flow-sde", "dance-sde"]


class FlowSettings(WindowSettings):
    """Flow matching by Euler's steps, with noise at all but the last."""

    kind: Literal["flow"] = "flow"
    eta: Annotated[float, Field(ge=0, le=2)] = 1.0
    """How much noise a step adds; 0: none, Euler's step. For `cps` at most 1, where the predicted image is noised
    again, as in RLCM."""
    noise: NoiseKind = "cps"
    """How it is added: `cps` (arXiv 2509.05952), `flow-sde` (Flow-GRPO, arXiv 2505.05470) or `dance-sde` (DanceGRPO,
    arXiv 2505.07818)."""
    sigmas: Sigmas | None = None
    """Noise levels of the calls before the model's shift, falling from at most 1, such as [1.0, 0.75, 0.5, 0.25].
    None: those of the model's pipeline."""
    shift: Annotated[float, Field(gt=0)] | None = None
    """Shift of the noise levels at every image size, σ to shift · σ / (1 + (shift − 1) σ), in place of the model's
    own, such as the 3 of a LoRA that was distilled at it. None: the model's."""

    @model_validator(mode="after")
    def _check_eta(self) -> Self:
        if self.noise == "cps" and self.eta > 1:
            raise ValueError("sampler.eta is above 1, which sampler.noise cps does not take; lower it")
        return self


def flow_schedule(
    sigmas: Tensor, eta: Tensor, noise: NoiseKind, *, time_scale: float = 1000.0, last_std: float = 0.0
) -> Schedule:
    """Build the schedule of a flow matching sampler, at η = 0 equal to diffusers' `FlowMatchEulerDiscreteScheduler`.

    CPS, with c = cos(ηπ/2); at η = 1 that is the scheduler's `stochastic_sampling`:

        mean = ((1 − σ') + σ' c) x + (−σ (1 − σ') + σ' c (1 − σ)) v,   std = σ' sin(ηπ/2)

    The two stochastic differential equations, with dt = σ' − σ, and g = η √(σ / (1 − σ)) in Flow-SDE (at σ = 1 with
    the next σ in the denominator), g = η in Dance-SDE:

        mean = (1 + g² dt / 2σ) x + (1 + g² (1 − σ) / 2σ) dt v,   std = g √−dt

    Args:
        sigmas: σ of the H calls and of the end, float64 [H + 1], falling.
        eta: η of each call, float64 [H]; a call that ends at σ' = 0 is deterministic whatever its η.
        noise: How noise is added.
        time_scale: The model's time at σ = 1.
        last_std: Standard deviation of the last call around its latents; 0: deterministic.
    """
    import torch

    from rlcm_cli.core.schedule import Schedule

    now, then = sigmas[:-1], sigmas[1:]
    eta = torch.where(then > 0, eta, 0.0)
    if noise == "cps":
        kept = then * torch.cos(eta * math.pi / 2)
        latents_coef = (1 - then) + kept
        output_coef = -now * (1 - then) + kept * (1 - now)
        std = torch.where(eta > 0, then * torch.sin(eta * math.pi / 2), 0.0)
    else:
        finite = torch.where(now < 1, now, then)
        growth = eta * (now / (1 - finite)).sqrt() if noise == "flow-sde" else eta
        change = then - now
        latents_coef = 1 + growth**2 * change / (2 * now)
        output_coef = (1 + growth**2 * (1 - now) / (2 * now)) * change
        std = growth * (-change).sqrt()
    # Without noise the step is Euler's to the last bit, not only within rounding.
    latents_coef = torch.where(eta > 0, latents_coef, 1.0)
    output_coef = torch.where(eta > 0, output_coef, then - now)
    std[-1] = last_std or std[-1]
    return Schedule(time_scale * now, time_scale * then, latents_coef, output_coef, std)


def choose_sigmas(settings: FlowSettings, noise: Noise, steps: int) -> Tensor:
    """Return σ of the calls and of the end, float64 [H + 1]. Raises `ConfigError` for levels that do not fit."""
    if noise.sigmas is None:
        raise ConfigError(
            "the model's noise has no σ of flow matching, which this sampler draws with; use a sampler of the model's "
            "family (--sampler)"
        )
    asked = settings.sigmas
    if asked is not None and (len(asked) != steps or list(asked) != sorted({*asked}, reverse=True)):
        raise ConfigError(
            f"sampler.sigmas are {list(asked)}, and sample.steps is {steps}: they are one for each model call, each "
            "below the one before; change one of them"
        )
    return noise.sigmas(steps, asked, *(() if settings.shift is None else (settings.shift,)))


def fix_shift(shift: float) -> dict[str, Any]:
    """Return the scheduler's settings for one shift at every image size."""
    return {"shift": shift, "use_dynamic_shifting": False, "shift_terminal": None}


def _schedule(settings: FlowSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    sigmas, eta = choose_sigmas(settings, noise, steps), spread_eta(settings, steps)
    scale = float(noise.scheduler["num_train_timesteps"])
    return flow_schedule(sigmas, eta, settings.noise, time_scale=scale, last_std=last_std)


def _in_diffusers(settings: FlowSettings, noise: Noise, steps: int) -> PipelineCall | None:
    # The scheduler's own noise is drawn in the shape of packed latents, where a pipeline packs them: another order.
    if settings.eta > 0 and settings.window != ():
        return None
    sigmas = {} if settings.sigmas is None else {"sigmas": list(settings.sigmas)}
    shift = {} if settings.shift is None else fix_shift(settings.shift)
    return PipelineCall("FlowMatchEulerDiscreteScheduler", {"num_inference_steps": steps, **sigmas}, shift)


SAMPLER = Sampler(
    settings=FlowSettings,
    levels="sigma",
    scheduler="FlowMatchEulerDiscreteScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=find_no_noise,
    noise_on_last_call=True,
    # With a small η the noise is so small that the rounding of folded products would show in the ratio.
    folds_lora=False,
    fits_pretraining=False,
    distilled=False,
    steps=4,
    drawing={"eta": 0.0},
    comfyui={"sampler_name": "euler", "scheduler": "simple"},
)
