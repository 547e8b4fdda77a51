"""The ways in which the same prompts and seeds are drawn: without and with LoRAs, by steps and by guidance."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlcm_cli.config import override_section
from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.drawing import (
    Adapter,
    Drawing,
    check_strength,
    choose_settings,
    plan_images,
    show_name,
)
from rlcm_cli.pictures.generate import name_picture
from rlcm_cli.wording import slug

BASE = "base"


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn; what is empty or None was not asked for."""

    prompts: Sequence[str]
    adapters: Sequence[Adapter] = ()
    base: bool = True
    """Also without a LoRA."""
    steps: Sequence[int] = ()
    guidance: Sequence[float] = ()
    count: int = 1
    """Images a prompt."""
    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ModelSettings`."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Its kind, and settings of it."""


@dataclass(frozen=True)
class Way:
    """One way of drawing all images."""

    name: str
    drawing: Drawing
    files: Sequence[str]
    """Of each image, from the folder of the evaluation on."""

    @property
    def folder(self) -> str:
        """Folder of its images, within that of the evaluation."""
        return self.files[0].partition("/")[0]

    def rows(self) -> list[dict[str, Any]]:
        """Return what is noted of each image, but for its rewards; no path of this machine."""
        drawing, adapter = self.drawing, self.drawing.adapter
        return [
            {
                "file": file,
                "prompt": spec.prompt,
                "seed": spec.seed,
                "way": self.name,
                "model": show_name(drawing.model.name),
                "lora": adapter.reference if adapter else None,
                "scale": adapter.scale if adapter else None,
                "steps": drawing.sample.steps,
                "guidance_scale": drawing.sample.guidance_scale,
                "sampler": drawing.sampler.kind,
            }
            for file, spec in zip(self.files, drawing.specs, strict=True)
        ]


def plan_ways(wanted: Wanted) -> list[Way]:
    """Plan the ways: each LoRA, and the base model, with each number of steps and each guidance scale.

    The base is drawn as the first LoRA is, with which it is compared. Raises `ConfigError`, and as `choose_settings`.
    """
    specs = plan_images(wanted.prompts, count=wanted.count, seed=wanted.seed)
    settings = [
        choose_settings(adapter, model=wanted.model, sample={}, sampler=wanted.sampler)
        for adapter in wanted.adapters or (None,)
    ]
    if wanted.adapters and wanted.base and len({chosen.name for chosen, *_ in settings}) > 1:
        raise ConfigError(
            "the LoRAs were trained on different models, so that there is no one base; name it with --model, or add "
            "--no-base"
        )
    drawn: list[tuple[Adapter | None, int]] = [(adapter, number) for number, adapter in enumerate(wanted.adapters)]
    if wanted.base or not drawn:
        drawn = [(None, 0), *drawn]
    for adapter in wanted.adapters:
        check_strength(adapter)
    ways: list[Way] = []
    for (lora, number), steps, guidance in itertools.product(
        drawn, wanted.steps or (None,), wanted.guidance or (None,)
    ):
        model, sample, sampler = settings[number]
        drawing = Drawing(
            specs, model, override_section(sample, {"steps": steps, "guidance_scale": guidance}), sampler, lora
        )
        ways.append(_name(drawing, wanted, ways))
    return ways


def _name(drawing: Drawing, wanted: Wanted, before: Sequence[Way]) -> Way:
    """Name a way, unlike any before, and the files of its images."""
    adapter, sample = drawing.adapter, drawing.sample
    # Where steps or guidance were asked for, even one value is named: others may be drawn into the folder later.
    parts = [adapter.name if adapter else BASE]
    parts += [f"{sample.steps} step{'s' * (sample.steps != 1)}"] if wanted.steps else []
    parts += [f"guidance {sample.guidance_scale:g}"] if wanted.guidance else []
    plain = ", ".join(parts)
    name = _distinguish(plain, " ({})", {way.name for way in before})
    folder = _distinguish(slug(plain) or "way", "-{}", {way.folder for way in before})
    return Way(name, drawing, [f"{folder}/{name_picture(index, spec)}" for index, spec in enumerate(drawing.specs)])


def _distinguish(name: str, form: str, taken: Collection[str]) -> str:
    """Return a name, with a number behind it where it is taken."""
    numbered = (name + form.format(number) for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)
