"""Noise levels of flow matching, as the pipelines of diffusers compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.families import Configs, LoadedPipeline
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import SAMPLERS, Noise, Sampler
from rlcm_cli.samplers.flow import SAMPLER as FLOW
from rlcm_cli.samplers.flow import fix_shift

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULER = FLOW.scheduler


def check_scheduler(name: str, scheduler: Any, stated: Mapping[str, Any] | None) -> None:
    """Raise `ModelError` where a scheduler's noise levels are not those of flow matching, falling from 1 to 0."""
    config = scheduler.config
    if "beta_schedule" in config or "shift" not in config:
        raise ModelError(
            f"{name}: its scheduler, {type(scheduler).__name__}, is not one of flow matching; use the scheduler that "
            f"belongs to the model ({SCHEDULER})"
        )
    if config.get("invert_sigmas"):
        raise ModelError(
            f"{name}: its noise levels rise (invert_sigmas in scheduler/scheduler_config.json), which no sampler here "
            "draws with; set it to false, or use another model"
        )


def read_noise(model: LoadedPipeline, arguments: Callable[[int], Mapping[str, Any]]) -> Noise:
    """Return the noise of a model of flow matching.

    `arguments`: H → what the model's pipeline calls `set_timesteps` of its scheduler with, where no σ are asked for:
    `num_inference_steps` or `sigmas`, and `mu`, which belongs to the image size, where it shifts by that.
    """

    def list_sigmas(steps: int, asked: Sequence[float] | None, shift: float | None = None, /) -> Tensor:
        changes = {} if shift is None else fix_shift(shift)
        # A new one: levels that are not set by the constructor belong to the last call.
        scheduler = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config, **changes)
        if steps == 1 and scheduler.config.shift_terminal:
            raise ConfigError(
                f"the model's noise levels end at {scheduler.config.shift_terminal:g} (shift_terminal), so that one "
                "model call has none; use --steps 2 or more"
            )
        own = dict(arguments(steps))
        if asked is not None:
            own = {**{key: value for key, value in own.items() if key != "num_inference_steps"}, "sigmas": list(asked)}
        scheduler.set_timesteps(**own)
        levels: Tensor = scheduler.sigmas.double()
        return levels

    return Noise(model.pipeline.scheduler.config, sigmas=list_sigmas)


def choose_sampler(name: str, configs: Configs, wanted: Sampler | None, distilled_lora: str | None) -> Sampler:
    """Return the sampler of a model of flow matching: the one that is asked for, or `flow`.

    Raises `ModelError` for a sampler that draws with other noise.
    """
    if wanted is not None and wanted.scheduler != SCHEDULER:
        fitting = ", ".join(kind for kind, sampler in SAMPLERS.items() if sampler.scheduler == SCHEDULER)
        raise ModelError(
            f"{name}: is a model of flow matching, which the sampler '{wanted.kind}' cannot draw; use --sampler "
            f"{fitting}, or leave the option out"
        )
    return wanted or FLOW


def list_even_sigmas(steps: int) -> list[float]:
    """Return the noise levels from 1 to 1/H in even steps, which pipelines shift."""
    import numpy as np

    levels: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
    return levels


def check_size(height: int, width: int, unit: int) -> None:
    """Raise `ModelError` for an image whose sides are no multiples of `unit` pixels."""
    if any(side < unit or side % unit for side in (height, width)):
        asked = str(height) if height == width else f"{width} x {height}"
        raise ModelError(f"images of {asked} pixels: this model's are multiples of {unit} pixels; choose one")


def read_shift(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `calculate_shift` of a pipeline takes from its scheduler's configuration."""
    return {
        "base_seq_len": scheduler["base_image_seq_len"],
        "max_seq_len": scheduler["max_image_seq_len"],
        "base_shift": scheduler["base_shift"],
        "max_shift": scheduler["max_shift"],
    }


TRAINING_NOISE = 0.9
"""η of CPS that RTDMD (arXiv 2605.26108) trains FLUX.2 klein with, in four calls."""


def recommend(
    steps: int, guidance_scale: float, *, image_size: tuple[int, int] | None, source: str, shift: float | None = None
) -> Recommendation:
    """Return what a model of flow matching is drawn with, by its makers, and trained with: the same and noise.

    `shift`: of the noise levels, in place of the model's own.
    """
    fixed = {} if shift is None else {"shift": shift}
    training = {"sample.steps": steps, "sample.guidance_scale": guidance_scale, "sampler.eta": TRAINING_NOISE}
    training |= {f"sampler.{name}": value for name, value in fixed.items()}
    return Recommendation(
        FLOW.kind, steps, guidance_scale, drawing=fixed, training=training, image_size=image_size, source=source
    )


def train_base(found: Recommendation, training: Mapping[str, Any]) -> Recommendation:
    """Return the recommendation of a base model, which is trained with fewer steps and other noise.

    `training`: settings by their dotted keys.
    """
    return replace(found, training={**found.training, **training})
