"""The same prompts and seeds drawn in several ways: a sheet with an axis for each of what has several values."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from rlcm_cli.config import ModelSettings, SampleSettings, override_section
from rlcm_cli.errors import ConfigError
from rlcm_cli.pictures.drawing import Adapter, Drawing, ImageSpec, check_strength, choose_settings
from rlcm_cli.pictures.generate import Plan, name_picture, plan_plainly
from rlcm_cli.pictures.labelled_sheet import Block, arrange_blocks
from rlcm_cli.samplers import SamplerSettings
from rlcm_cli.wording import slug

MOST_AXES = 2


@dataclass(frozen=True)
class Ways:
    """How each prompt and seed is drawn: every combination of LoRA, scale and steps."""

    loras: Sequence[Adapter] = ()
    scales: Sequence[float] = (1.0,)
    steps: Sequence[int | None] = (None,)
    """None: as the LoRA, or the model, says."""
    compare_base: bool = False
    """Also without the LoRA."""


@dataclass(frozen=True)
class _Value:
    """One value of an axis."""

    label: str
    tag: str
    """Part of a file's name."""
    value: Any
    """Of LoRAs and scales, None is the base model."""


BASE = _Value("base", "base", None)


def plan_axes(
    specs: Sequence[ImageSpec],
    count: int,
    ways: Ways,
    *,
    model: Mapping[str, Any],
    sample: Mapping[str, Any],
    sampler: Mapping[str, Any],
) -> Plan:
    """Plan the drawings of `count` specs a prompt in several ways; `model` and so on as in `choose_settings`.

    A sheet shows two axes in addition to prompts and seeds, so no more than two of LoRA, scale and steps have several
    values. The base model is one more value of the scale where that has several, else of the LoRA. What is drawn
    alike is drawn once. Raises `ConfigError`.
    """
    loras, scales, steps = _spread(ways)
    axes = [axis for axis in (loras, scales, steps) if len(axis) > 1]
    settings = _settle(ways, model, sample, sampler)
    cells: dict[tuple[str, ...], Drawing] = {}
    files: dict[Drawing, list[str]] = {}
    for cell in itertools.product(loras, scales, steps):
        lora, scale, calls = (value.value for value in cell)
        chosen, sampling, of_sampler = settings[lora]
        drawing = Drawing(
            specs=tuple(specs),
            model=chosen,
            sample=override_section(sampling, {"steps": calls}),
            sampler=of_sampler,
            adapter=None if lora is None or scale is None else replace(lora, scale=scale),
        )
        own = [value for value, axis in zip(cell, (loras, scales, steps), strict=True) if len(axis) > 1]
        cells[tuple(value.label for value in own)] = drawing
        names = [name_picture(index, spec, [value.tag for value in own]) for index, spec in enumerate(specs)]
        files.setdefault(drawing, names)
    drawings = list(files)
    for adapter in (drawing.adapter for drawing in drawings if drawing.adapter):
        check_strength(adapter)
    if not axes:
        return plan_plainly(drawings[0], count)

    def arrange(images: Sequence[Sequence[Tensor]]) -> Image.Image:
        of_cell = {labels: images[drawings.index(drawing)] for labels, drawing in cells.items()}
        return arrange_blocks(_lay_out(specs, count, [[value.label for value in axis] for axis in axes], of_cell))

    return Plan(drawings, list(files.values()), arrange)


def _settle(
    ways: Ways, model: Mapping[str, Any], sample: Mapping[str, Any], sampler: Mapping[str, Any]
) -> dict[Adapter | None, tuple[ModelSettings, SampleSettings, SamplerSettings]]:
    """Choose the settings of each LoRA; those of the base model are the first one's, with which it is compared."""
    choose = functools.partial(choose_settings, model=model, sample=sample, sampler=sampler)
    settings: dict[Adapter | None, tuple[ModelSettings, SampleSettings, SamplerSettings]] = {
        lora: choose(lora) for lora in ways.loras
    }
    if ways.compare_base and len({chosen.name for chosen, *_ in settings.values()}) > 1:
        raise ConfigError(
            "--compare-base: the LoRAs were trained on different models, so that there is no one base; name it with "
            "--model"
        )
    settings[None] = next(iter(settings.values()), None) or choose(None)
    return settings


def _spread(ways: Ways) -> tuple[list[_Value], list[_Value], list[_Value]]:
    if not ways.loras:
        for fault, flag in ((ways.compare_base, "--compare-base"), (tuple(ways.scales) != (1.0,), "--scale")):
            if fault:
                raise ConfigError(f"{flag} is about a LoRA, and there is none; name one with --lora")
    loras = _distinguish([_Value(lora.name, slug(lora.name), lora) for lora in ways.loras]) or [BASE]
    scales = [_Value(f"scale {scale:.12g}".replace("-", "−"), f"scale{scale:.12g}", scale) for scale in ways.scales]
    steps = [_Value(f"{n} step" + "s" * (n != 1), f"steps{n}", n) if n else _Value("", "", n) for n in ways.steps]
    if ways.compare_base and len(scales) > 1:
        scales = [BASE, *scales]
    elif ways.compare_base:
        loras = [BASE, *loras]
    several = [
        name
        for name, axis in (("--lora (and --compare-base)", loras), ("--scale", scales), ("--steps", steps))
        if len(axis) > 1
    ]
    if len(several) > MOST_AXES:
        raise ConfigError(
            f"{', '.join(several)} each have several values, and a sheet has two axes in addition to "
            "prompts and seeds; give one of them a single value"
        )
    return loras, scales, steps


def _distinguish(values: Sequence[_Value]) -> list[_Value]:
    """Number values whose labels, or parts of a file's name, are those of one before."""
    labelled: list[_Value] = []
    for value in values:
        alike = sum(other.label == value.label for other in values[: len(labelled)])
        same_tag = sum(slug(other.label) == value.tag for other in values[: len(labelled)])
        labelled.append(
            replace(
                value,
                label=f"{value.label} ({alike + 1})" if alike else value.label,
                tag=f"{value.tag}-{same_tag + 1}" if same_tag else value.tag,
            )
        )
    return labelled


def _lay_out(
    specs: Sequence[ImageSpec],
    count: int,
    axes: Sequence[Sequence[str]],
    images: Mapping[tuple[str, ...], Sequence[Tensor]],
) -> list[Block]:
    """Lay one axis next to the prompts or, of several seeds, the seeds; lay two axes again for each image."""
    numbers = range(len(specs))
    if len(axes) > 1:
        return [
            Block(
                caption=f"{specs[n].prompt} · seed {specs[n].seed}",
                rows=axes[0],
                columns=axes[1],
                images=[[images[row, column][n] for column in axes[1]] for row in axes[0]],
            )
            for n in numbers
        ]
    (labels,) = axes
    if count == 1:
        rows = [f"{spec.prompt}\nseed {spec.seed}" for spec in specs]
        return [Block("", rows, labels, [[images[(label,)][n] for label in labels] for n in numbers])]
    return [
        Block(
            caption=specs[first].prompt,
            rows=labels,
            columns=[f"seed {specs[n].seed}" for n in numbers[first : first + count]],
            images=[list(images[(label,)][first : first + count]) for label in labels],
        )
        for first in numbers[::count]
    ]
