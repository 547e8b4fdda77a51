"""The samplers, one file each: settings, timesteps, the Gaussian of each model call, and what else depends on them.

A module of this folder that does not begin with an underscore is a sampler. Its name is the sampler's kind, and its
constant `SAMPLER` says all that the rest of the program needs to know. No module imports torch when it is imported.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Union

from pydantic import AfterValidator, BeforeValidator, Field

from rlcm_cli.discovery import discover
from rlcm_cli.errors import ConfigError
from rlcm_cli.sections import Section
from rlcm_cli.wording import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from rlcm_cli.core.schedule import Schedule


def _check_rising(calls: tuple[int, ...]) -> tuple[int, ...]:
    if list(calls) != sorted({*calls}):
        raise ValueError(f"the model calls {list(calls)} are not in rising order, each once")
    return calls


def read_several(value: object) -> object:
    """Take a lone number, and a list, which TOML has for a tuple."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int | float) else value


Calls = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(read_several), AfterValidator(_check_rising)
]
"""Model calls of an image by their numbers, rising from 0."""
Timesteps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), BeforeValidator(read_several)]
"""Times of the model calls, one each."""
Sigmas = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(read_several)]
"""Noise levels of the model calls, one each."""


class SamplerSettings(Section):
    """What the settings of every sampler have in common."""

    kind: str
    """Name of the sampler."""


class ListSigmas(Protocol):
    """Lists noise levels as a model's pipeline has them for its image size."""

    def __call__(self, steps: int, asked: Sequence[float] | None, shift: float | None = None, /) -> Tensor:
        """Return σ of the H = `steps` calls, shifted, and of the end, float64 [H + 1], falling.

        Args:
            steps: H.
            asked: The levels before the shift; None: the pipeline's own.
            shift: In place of the pipeline's own shift; None: that.

        Raises:
            ConfigError: If the pipeline has none for this H.
        """


@dataclass(frozen=True)
class Noise:
    """The noise that a model was trained with, as its pipeline's scheduler states it."""

    scheduler: Mapping[str, Any]
    """The configuration of the sampler's scheduler, with the noise schedule of the pipeline's own."""
    alpha_bar: Tensor | None = None
    """ᾱ, float32 [train steps], on the CPU; None where noised latents are not √ᾱ · x + √(1 − ᾱ) · ε, as in flow
    matching."""
    sigmas: ListSigmas | None = None
    """Of flow matching, where noised latents are (1 − σ) · x + σ · ε."""

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ, of samplers that cannot do without. Raises `ConfigError` where the model has none."""
        if self.alpha_bar is None:
            raise ConfigError(
                "the model's noise has no ᾱ (alphas_cumprod), which this sampler draws with; use a sampler of the "
                "model's family (--sampler)"
            )
        return self.alpha_bar


Levels = Literal["alpha_bar", "sigma", "angle"]
"""Noise levels of diffusion (ᾱ), of flow matching (σ), and of consistency models on the circle (the angle whose
tangent is the ratio of noise to image)."""


@dataclass(frozen=True)
class PipelineCall:
    """How a pipeline of diffusers draws the same images."""

    scheduler: str
    """Class that its scheduler has to be of."""
    arguments: Mapping[str, Any]
    """Of its `__call__`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the scheduler that have to be other than the pipeline's own."""


@dataclass(frozen=True)
class Sampler:
    """A way to draw images with a model."""

    settings: type[SamplerSettings]
    """Settings of the table [sampler]; their `kind` is a literal, with itself as its default."""
    levels: Levels
    """Of what models it can draw: those whose noise levels are stated so."""
    scheduler: str
    """Class of diffusers that a loaded pipeline's scheduler is made to be: what its noise is read from."""
    schedule: Callable[[Any, Noise, int, float], Schedule]
    """(settings, noise, H, last std) → the H model calls, timesteps included. The last std, of the last call, is above
    0 only where `noise_on_last_call` is set. Raises `ConfigError` for settings that do not fit the noise."""
    in_diffusers: Callable[[Any, Noise, int], PipelineCall | None]
    """(settings, noise, H) → how a pipeline of diffusers draws the same; None where none of its schedulers does."""
    find_no_actions: Callable[[Any, int], tuple[str, str] | None]
    """(settings, H) → why no model call draws noise, and what to do about it; None: these settings are no reason."""
    noise_on_last_call: bool
    """Whether a small Gaussian can be added to the last call (last_step.mode noise)."""
    folds_lora: bool
    """Whether a LoRA may be added to the weights while drawing: the noise of every step is large compared with the
    rounding of the sum."""
    fits_pretraining: bool
    """Whether its models were trained to denoise images, as the loss of [pretraining] does."""
    distilled: bool
    """Whether it draws with weights that few steps were distilled into, mostly with their guidance."""
    steps: int
    """Model calls H of an image, outside of training."""
    drawing: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are others than the defaults outside of training."""
    comfyui: Mapping[str, str] = field(default_factory=dict)
    """ComfyUI's node or field → its value; empty: it has no such sampler."""

    @property
    def kind(self) -> str:
        """Name of the sampler, which a configuration chooses it by."""
        return str(self.settings.model_fields["kind"].default)

    @property
    def setting_names(self) -> list[str]:
        """Names of its settings, but for the kind."""
        return [name for name in self.settings.model_fields if name != "kind"]

    def default_settings(self) -> SamplerSettings:
        """Return the settings of training, where nothing is said of them."""
        return self.settings.model_validate({})

    def drawing_settings(self) -> SamplerSettings:
        """Return the settings outside of training, where nothing is said of them."""
        return self.settings.model_validate(self.drawing)


SAMPLERS: Mapping[str, Sampler] = discover(__name__, __path__, "SAMPLER", Sampler)
"""Every sampler, by its kind."""


DEFAULT = "lcm"
"""Kind of the sampler of a configuration that names none."""

if TYPE_CHECKING:
    AnySamplerSettings = SamplerSettings
else:
    AnySamplerSettings = Annotated[
        Union[tuple(sampler.settings for sampler in SAMPLERS.values())],  # noqa: UP007 - of a tuple
        Field(discriminator="kind"),
    ]


def find_sampler(kind: str) -> Sampler:
    """Return the sampler of a kind. Raises `ConfigError` for an unknown one."""
    if kind not in SAMPLERS:
        raise ConfigError(
            f"there is no sampler '{kind}'{nearest(kind, list(SAMPLERS))}; the samplers are {', '.join(SAMPLERS)}"
        )
    return SAMPLERS[kind]


def settle_window(settings: SamplerSettings, noise_calls: Sequence[int], seed: int, iteration: int) -> SamplerSettings:
    """Return settings whose noisy calls are those of an iteration, where they differ between iterations.

    Args:
        settings: Of a sampler.
        noise_calls: The calls that draw noise with these settings, rising. None: no other settings draw any.
        seed: What is left to chance depends on it.
        iteration: Counted from 0.

    Raises:
        ConfigError: If fewer calls can draw noise than are asked for.
    """
    name = next((name for name in ("random_calls", "window_size") if getattr(settings, name, None) is not None), None)
    if name is None or not noise_calls:
        return settings
    wanted = getattr(settings, name)
    if wanted > len(noise_calls):
        raise ConfigError(
            f"sampler.{name} is {wanted}, and only {len(noise_calls)} model calls can draw noise; lower it, or "
            "raise sample.steps"
        )
    drawn = random.Random(seed)  # noqa: S311 - for no secret
    if name == "random_calls":
        chosen = sorted(drawn.sample(noise_calls, wanted))
    else:
        places, every = len(noise_calls) - wanted + 1, getattr(settings, "window_every", None)
        first = drawn.randrange(places) if every is None else iteration // every % places
        chosen = list(noise_calls[first : first + wanted])
    settled = {"random_calls": None, "window_size": None, "window_every": None, "window": tuple(chosen)}
    return settings.model_copy(update=settled)


def find_owners(setting: str) -> list[str]:
    """Return the kinds of the samplers that have a setting of a name."""
    return [kind for kind, sampler in SAMPLERS.items() if setting in sampler.setting_names]


def read_setting(text: str) -> int | float | str | tuple[int | float | str, ...]:
    """Read the value of a setting from an option, a cell or a picture: a number where it is a finite one.

    Commas separate several, as `write_setting` writes them: `1,2` is (1, 2).
    """
    if "," in text:
        return tuple(_read_one(part.strip()) for part in text.split(",") if part.strip())
    return _read_one(text)


def _read_one(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            if math.isfinite(number):
                return number
    return text


def write_setting(value: object) -> str:
    """Write the value of a setting as `read_setting` reads it; that of None, which is no value, is empty."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) + "," * (len(value) == 1)
    return "" if value is None else str(value)


def explain_no_actions(settings: SamplerSettings, steps: int) -> str | None:
    """Return an error's line where these settings leave no model call that draws noise; None where they leave one."""
    found = SAMPLERS[settings.kind].find_no_actions(settings, steps)
    if found is None:
        return None
    cause, advice = found
    return f"{cause}: no step of the sampler {settings.kind} draws noise, so there is no action to train; {advice}"
