"""Noise levels of flow matching, as the pipelines of diffusers compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ModelError
from rlcm_cli.families import LoadedPipeline
from rlcm_cli.samplers import Noise

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULER = "FlowMatchEulerDiscreteScheduler"


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

    def list_sigmas(steps: int, asked: Sequence[float] | None) -> Tensor:
        # A new one: levels that are not set by the constructor belong to the last call.
        scheduler = type(model.pipeline.scheduler).from_config(model.pipeline.scheduler.config)
        own = dict(arguments(steps))
        if asked is not None:
            own = {**{key: value for key, value in own.items() if key != "num_inference_steps"}, "sigmas": list(asked)}
        scheduler.set_timesteps(**own)
        levels: Tensor = scheduler.sigmas.double()
        return levels

    return Noise(model.pipeline.scheduler.config, sigmas=list_sigmas)
