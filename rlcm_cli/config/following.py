"""Settings of a preset that follow others, where a user changes one and says nothing of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]
"""A configuration, or a layer of one, as nested tables that are not validated yet."""


def find_following(preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    """Return what follows from a user's own settings over those of a preset: (dotted key, value, a line that tells).

    `train.minibatch_size` follows `sample.samples`, so that an iteration keeps its number of optimizer steps where it
    can. A LoRA that was distilled for few steps is drawn without guidance, which was distilled with it; what a preset
    has is for the model that it names. An objective leaves the settings of the one that it replaces behind.

    Args:
        preset: What holds where the user says nothing.
        file: What the user's file says.
        line: What the command line says. What is not a number where one belongs is left for the validation to refuse.
    """
    return [
        *_follow_samples(preset, file, line),
        *_follow_distilled_lora(preset, file, line),
        *_follow_objective(preset, file, line),
    ]


def _follow_samples(preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    # Samples of the command line stand over what a file has for both, as over what a preset has.
    below = [file, preset] if _look_up(line, "sample", "samples") is not None else [preset]
    own = [line] if len(below) == 2 else [line, file]
    samples, before = _first(own, "sample", "samples"), _first(below, "sample", "samples")
    size = _first(below, "train", "minibatch_size")
    group = _first([line, file, preset], "sample", "group_size") or 1
    if _first(own, "train", "minibatch_size") is not None or not _are_counts(samples, before, size, group):
        return []
    # As many steps as the preset makes, or the next fewer whose minibatches are equal and tear no group.
    steps = max(1, round(before / size))
    fitting = [n for n in range(1, steps + 1) if samples % n == 0 and samples // n % group == 0]
    followed = samples // max(fitting, default=1)
    if followed == size:
        return []
    return [
        (
            "train.minibatch_size",
            followed,
            f"train.minibatch_size is {followed}, not {size}: it follows sample.samples {samples}",
        )
    ]


def _follow_distilled_lora(preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    lora, asked = (_first([line, file], *key) for key in (("model", "distilled_lora"), ("sample", "guidance_scale")))
    before = _look_up(preset, "sample", "guidance_scale")
    if lora is None or asked is not None or before == 1:
        return []
    was = "" if before is None else f", not the preset's {before}"
    return [
        (
            "sample.guidance_scale",
            1.0,
            f"sample.guidance_scale is 1{was}: guidance was distilled into model.distilled_lora (--set "
            "sample.guidance_scale=2 overrides)",
        )
    ]


def _follow_objective(preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    chosen = _first([line, file], "objective", "kind")
    if chosen is None:
        return []
    below = [preset, file] if _look_up(line, "objective", "kind") is not None else [preset]
    left: dict[str, Any] = {}
    before = None
    for layer in below:
        table = layer.get("objective")
        kind = _look_up(layer, "objective", "kind") or before
        if isinstance(table, Mapping) and kind not in (None, chosen):
            left = {**(left if kind == before else {}), **table}
            before = kind
    settings = ", ".join(f"objective.{key} {value}" for key, value in left.items() if key != "kind")
    if not settings:
        return []
    return [("objective.kind", chosen, f"objective.kind is {chosen}, not {before}, so {settings} is left out")]


def _first(layers: Sequence[Values], table: str, key: str) -> Any:
    found = (_look_up(layer, table, key) for layer in layers)
    return next((value for value in found if value is not None), None)


def _look_up(values: Values, table: str, key: str) -> Any:
    section = values.get(table)
    return section.get(key) if isinstance(section, Mapping) else None


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)
