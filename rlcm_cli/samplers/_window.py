"""Noise at some of the model calls only: Euler's deterministic step at the others (MixGRPO, arXiv 2507.21802)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from rlcm_cli.errors import ConfigError
from rlcm_cli.samplers import Calls, SamplerSettings
from rlcm_cli.sections import PositiveInt

if TYPE_CHECKING:
    from torch import Tensor


class WindowSettings(SamplerSettings):
    """Settings of a sampler whose noise has a strength, and can be left out at some calls."""

    eta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """How much noise a step adds; with 0 there is none, and nothing to train."""
    window: Calls | None = None
    """The model calls that may add noise and are trained, counted from 0, such as [1, 2]; all others are
    deterministic. None: every call that can."""
    random_calls: PositiveInt | None = None
    """How many of these calls add noise, chosen at random for each iteration. None: all of them."""
    window_size: PositiveInt | None = None
    """Instead of `random_calls`: how many of these calls, neighbours of each other, add noise. Their place changes
    with the iterations."""
    window_every: PositiveInt | None = None
    """Iterations after which the neighbours of `window_size` move on by one call, and from the last place to the
    first. None: their place is random for each iteration."""

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.random_calls is not None and self.window_size is not None:
            raise ValueError("sampler.random_calls and sampler.window_size exclude each other; leave one of them out")
        if self.window_every is not None and self.window_size is None:
            raise ValueError("sampler.window_every moves the calls of sampler.window_size; set that too")
        return self

    @property
    def has_window(self) -> bool:
        """Whether some calls that could add noise add none."""
        return any(choice is not None for choice in (self.window, self.random_calls, self.window_size))


def spread_eta(settings: WindowSettings, steps: int) -> Tensor:
    """Return the η of each of H calls, float64 [H]: 0 outside of the window.

    Raises `ConfigError` for a window that names a call that there is not.
    """
    import torch

    if settings.window is None:
        return torch.full((steps,), settings.eta, dtype=torch.float64)
    beyond = [call for call in settings.window if call >= steps]
    if beyond:
        raise ConfigError(
            f"sampler.window names the model call {beyond[0]}, and with sample.steps {steps} they are 0 to "
            f"{steps - 1}; change one of them"
        )
    eta = torch.zeros(steps, dtype=torch.float64)
    eta[list(settings.window)] = settings.eta
    return eta


def find_no_noise(settings: WindowSettings, steps: int) -> tuple[str, str] | None:
    """Return why no call draws noise, where the last one never does, and what to do about it; None where one does."""
    if settings.eta == 0:
        return "sampler.eta is 0", "raise it"
    if steps < 2:
        return f"sample.steps is {steps}", "use --steps 2 or more"
    if settings.window is not None and not any(call < steps - 1 for call in settings.window):
        return f"sampler.window is {list(settings.window)}", f"name calls from 0 to {steps - 2}"
    return None
