"""The sampling of continuous-time consistency models (sCM, arXiv 2410.11081), as in SANA-Sprint (arXiv 2503.09641).

Their latents are cos s · x₀ + σ_data sin s · ε, of an angle s from π/2 down to 0. The transformer is fed these latents
divided by σ_data (cos s + sin s), and told the time τ = sin s / (sin s + cos s). In these terms, which are the states
here, a noised latent is (1 − τ) x₀ + τ ε and the transformer's output is the velocity ε − x₀: SANA-Sprint is a flow
matching model that is drawn by predicting x₀ and adding noise again, and every factor of `SanaSprintPipeline` and of
`SCMScheduler` cancels to that.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Noise, PipelineCall, Sampler, read_several
from rlcm_cli.samplers._window import WindowSettings, find_no_noise, spread_eta
from rlcm_cli.samplers.flow import flow_schedule

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import Schedule

FIRST_ANGLE = 1.57080
"""π/2, rounded as the makers have it."""
TRAIN_STEPS = 1000
"""Of an SCMScheduler that states none."""
SECOND_ANGLE = 1.3
"""The second of two."""

Angle = Annotated[float, Field(gt=0, le=FIRST_ANGLE)]


class ScmSettings(WindowSettings):
    """The multistep sampling of a continuous-time consistency model: H − 1 of H model calls add noise."""

    kind: Literal["scm"] = "scm"
    angles: Annotated[tuple[Angle, ...], Field(min_length=1), BeforeValidator(read_several)] | None = None
    """Times of the model calls as angles, falling from at most 1.5708, such as [1.5708, 1.3]. None: those two with two
    steps, else evenly spaced, as in diffusers."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.angles is not None and any(then >= now for now, then in pairwise(self.angles)):
            raise ValueError(f"sampler.angles are {list(self.angles)}, and each has to be below the one before")
        return self


def scm_schedule(angles: Tensor, eta: Tensor, *, last_std: float = 0.0) -> Schedule:
    """Build the schedule of a continuous-time consistency model, at η = 1 equal to diffusers' `SCMScheduler`.

    With τ = sin s / (sin s + cos s) now and τ' next, and c = cos(ηπ/2), the step is CPS of `flow_schedule`. At η = 1:

        next ~ N((1 − τ') (latents − τ output), τ'²)

    The first latents are the noise times √(τ² + (1 − τ)²), which is 1 at π/2. The model's time is τ.

    Args:
        angles: s of the H calls and of the end, float64 [H + 1], falling.
        eta: η of each call, float64 [H].
        last_std: Standard deviation of the last call around its latents; 0: deterministic.
    """
    levels = angles.sin() / (angles.sin() + angles.cos())
    first = float(levels[0])
    scale = (first**2 + (1 - first) ** 2) ** 0.5
    schedule = flow_schedule(levels, eta, "cps", time_scale=1.0, last_std=last_std)
    return dataclasses.replace(schedule, initial_scale=scale)


def choose_arguments(settings: ScmSettings, steps: int) -> dict[str, Any]:
    """Return what `SCMScheduler.set_timesteps` takes for H calls.

    Raises `ConfigError` where the angles are not one for each call.
    """
    angles = settings.angles
    if angles is None:
        return {"max_timesteps": FIRST_ANGLE, "intermediate_timesteps": SECOND_ANGLE if steps == 2 else None}
    if len(angles) != steps:
        raise ConfigError(
            f"sampler.angles are {list(angles)}, and sample.steps is {steps}: they are one for each model call; "
            "change one of them"
        )
    if steps <= 2:
        return {"max_timesteps": angles[0], "intermediate_timesteps": angles[1] if steps == 2 else None}
    return {"timesteps": [*angles, 0.0], "max_timesteps": None, "intermediate_timesteps": None}


def _schedule(settings: ScmSettings, noise: Noise, steps: int, last_std: float) -> Schedule:
    import torch

    trained = noise.scheduler.get("num_train_timesteps", TRAIN_STEPS)
    if steps > trained:
        raise ConfigError(f"sample.steps is {steps}, more than the {trained} timesteps of the model's training")
    arguments = choose_arguments(settings, steps)
    first, second = arguments["max_timesteps"], arguments["intermediate_timesteps"]
    # In float32, as SCMScheduler has them.
    if "timesteps" in arguments:
        angles = torch.tensor(arguments["timesteps"])
    elif second is not None:
        angles = torch.tensor([first, second, 0.0])
    else:
        angles = torch.linspace(first, 0, steps + 1)
    return scm_schedule(angles.double(), spread_eta(settings, steps), last_std=last_std)


def _in_diffusers(settings: ScmSettings, noise: Noise, steps: int) -> PipelineCall | None:
    arguments = choose_arguments(settings, steps)
    # The pipeline passes a list of timesteps on without their number, which the scheduler wants too, and fails.
    if settings.eta < 1 or settings.has_window or "timesteps" in arguments:
        return None
    return PipelineCall(SAMPLER.scheduler, {"num_inference_steps": steps, **arguments})


SAMPLER = Sampler(
    settings=ScmSettings,
    levels="angle",
    scheduler="SCMScheduler",
    schedule=_schedule,
    in_diffusers=_in_diffusers,
    find_no_actions=find_no_noise,
    noise_on_last_call=True,
    # With a small η the noise is so small that the rounding of folded products would show in the ratio.
    folds_lora=False,
    fits_pretraining=False,
    distilled=True,
    steps=2,
)
