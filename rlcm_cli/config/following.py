"""Settings of a preset that follow other settings, if a user changes only those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from rlcm_cli.config.settings import ModelSettings, write_size
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import DEFAULT, SAMPLERS

Values = Mapping[str, Any]
"""A configuration, or a layer of one, as nested tables that are not validated yet."""

Recommend = Callable[[ModelSettings], Recommendation | None]
"""Returns how a model recommends to be sampled; None if it cannot be asked."""


def find_following(
    preset: Values, file: Values, line: Values, own_model: Values, recommend: Recommend | None
) -> list[tuple[str, Any, str]]:
    """Return what follows from a user's own settings: (dotted key, value, a line that says so).

    `train.minibatch_size` follows `sample.samples`, so that an iteration keeps its number of optimizer steps if
    possible, and `sample.group_size`, which has to divide them. A LoRA that was distilled for few steps is sampled
    without guidance, which was distilled with it; the preset's guidance is for the preset's model. `[sampler]` follows
    the model, if that is not the preset's and uses another sampler; so do steps, guidance, image size and settings of
    the sampler, if its makers recommend some.
    A new objective or sampler drops the settings of the one it replaces, and an objective that learns from no single
    actions the preset's choice among them.

    Args:
        preset: What holds unless the user says otherwise.
        file: What the user's file says.
        line: What the command line says. Values of a wrong type are left for the validation to refuse.
        own_model: The preset's table [model].
        recommend: Asks a model; None: no model is asked, and the preset's sampler stays.
    """
    found, model = _ask(file, line, own_model, recommend)
    return [
        *_follow_samples(preset, file, line),
        *(_follow_distilled_lora(preset, file, line) if found is None or not found.source else []),
        *_follow_choice("objective", preset, file, line),
        *_follow_objective(preset, file, line),
        *_follow_choice("sampler", preset, file, line),
        *_follow_model(preset, file, line, found, model),
    ]


def follow_rewards(
    preset: Values, file: Values, line: Values, rewards: Any, differentiable: Callable[[str], bool]
) -> list[tuple[str, Any, str]]:
    """Return what follows from the rewards that are trained for, as `find_following` does.

    A preset's back-propagation is left out where no reward has a gradient.

    Args:
        preset: As there.
        file: As there.
        line: As there.
        rewards: The rewards of all layers; of a wrong type they are left for the validation to refuse.
        differentiable: Says whether a reward has a gradient, by its name.
    """
    asked = _first([line, file], "last_step", "mode")
    if asked is not None or _look_up(preset, "last_step", "mode") != "backprop" or not isinstance(rewards, Mapping):
        return []
    trained = [name for name, weight in rewards.items() if weight]
    if any(differentiable(name) for name in trained):
        return []
    note = f"last_step.mode is deterministic, not backprop: {', '.join(trained)} cannot be differentiated"
    return [("last_step.mode", "deterministic", note)]


def _follow_samples(preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    # Samples given on the command line override what a file says about both, as they override a preset.
    below = [file, preset] if _look_up(line, "sample", "samples") is not None else [preset]
    own = [line] if len(below) == 2 else [line, file]
    samples, before = _first(own, "sample", "samples"), _first(below, "sample", "samples")
    size = _first(below, "train", "minibatch_size")
    group = _first([*own, *below], "sample", "group_size") or 1
    followed = []
    if _first(own, "sample", "group_size") is None and _are_counts(samples, group) and samples % group:
        # The next lower size that fits, of two or more: an image alone is compared with nothing.
        smaller = max((n for n in range(2, group) if samples % n == 0), default=group)
        if smaller != group:
            note = f"sample.group_size is {smaller}, not {group}: it follows sample.samples {samples}"
            followed.append(("sample.group_size", smaller, note))
            group = smaller
    if _first(own, "train", "minibatch_size") is not None or not _are_counts(samples, before, size, group):
        return followed
    # As many steps as in the preset, or the next lower number with equal minibatches that split no group.
    steps = max(1, round(before / size))
    fitting = [n for n in range(1, steps + 1) if samples % n == 0 and samples // n % group == 0]
    minibatch = samples // max(fitting, default=1)
    if minibatch != size:
        note = f"train.minibatch_size is {minibatch}, not {size}: it follows sample.samples {samples}"
        followed.append(("train.minibatch_size", minibatch, note))
    return followed


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


def _follow_choice(name: str, preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    chosen = _first([line, file], name, "kind")
    if chosen is None:
        return []
    below = [preset, file] if _look_up(line, name, "kind") is not None else [preset]
    left: dict[str, Any] = {}
    before = None
    for layer in below:
        table = layer.get(name)
        kind = _look_up(layer, name, "kind") or before
        if isinstance(table, Mapping) and kind not in (None, chosen):
            left = {**(left if kind == before else {}), **table}
            before = kind
    others = [f"{name}.{key} {value}" for key, value in left.items() if key != "kind"]
    if not others:
        return []
    verb = "is" if len(others) == 1 else "are"
    note = f"{name}.kind is {chosen}, not {before}, so {', '.join(others)} {verb} left out"
    return [(f"{name}.kind", chosen, note)]


def _follow_objective(preset: Values, file: Values, line: Values) -> list[tuple[str, Any, str]]:
    chosen = OBJECTIVES.get(_first([line, file], "objective", "kind"))
    if chosen is None or (Need.ACTIONS in chosen.needs and Need.TRAJECTORY_PAIRS not in chosen.needs):
        return []
    of_trajectories = "compares whole trajectories" if Need.ACTIONS in chosen.needs else "learns from no actions"
    return [
        (f"train.{key}", whole, f"train.{key} {own} is left out: objective.kind {chosen.kind} {of_trajectories}")
        for key, whole in (("actions", None), ("timestep_fraction", 1.0))
        if (own := _look_up(preset, "train", key)) not in (None, whole) and _first([line, file], "train", key) is None
    ]


def _follow_model(
    preset: Values, file: Values, line: Values, found: Recommendation | None, model: ModelSettings | None
) -> list[tuple[str, Any, str]]:
    asked = _first([line, file], "sampler", "kind")
    before = _look_up(preset, "sampler", "kind") or DEFAULT
    if found is None or model is None or asked not in (None, found.sampler):
        return []
    table = {
        key.removeprefix("sampler."): value for key, value in found.training.items() if key.startswith("sampler.")
    }
    followed: list[tuple[str, Any, str]] = []
    if asked is None and found.sampler != before:
        other = SAMPLERS.get(before)
        drawable = other is not None and other.levels == SAMPLERS[found.sampler].levels
        followed.append(
            (
                "sampler",
                {"kind": found.sampler, **table, **_table(file, "sampler"), **_table(line, "sampler")},
                f"sampler.kind is {found.sampler}, not the preset's {before}: it follows model.name {model.name}"
                + (f" (--sampler {before} overrides)" if drawable else ""),
            )
        )
    return [*followed, *_follow_makers(preset, file, line, found, model, chosen=bool(followed))]


def _follow_makers(
    preset: Values, file: Values, line: Values, found: Recommendation, model: ModelSettings, *, chosen: bool
) -> list[tuple[str, Any, str]]:
    """Return what the makers of a model recommend, if anything is known of it, with one line on the first of all.

    `chosen`: the table [sampler] is the recommended one already.
    """
    if not found.source:
        return []
    size = {} if found.image_size is None else {"model.image_size": write_size(*found.image_size)}
    own = {"sample.steps": found.steps, "sample.guidance_scale": found.guidance_scale, **size, **found.training}
    followed = {}
    for key, value in own.items():
        table, _, name = key.partition(".")
        if _first([line, file], table, name) is not None or (chosen and table == "sampler"):
            continue
        if _look_up(preset, table, name) != value:
            followed[key] = value
    told = {**followed, **({key: own[key] for key in own if key.startswith("sampler.")} if chosen else {})}
    note = (
        ", ".join(f"{key} is {value}" for key, value in told.items())
        + f": recommended for {model.distilled_lora or model.name} ({found.source}); --set overrides"
    )
    return [(key, value, note if not number else "") for number, (key, value) in enumerate(followed.items())]


def _ask(
    file: Values, line: Values, own_model: Values, recommend: Recommend | None
) -> tuple[Recommendation | None, ModelSettings | None]:
    """Ask the model that is chosen, if it is not the preset's; return what it recommends, and its settings."""
    if recommend is None:
        return None, None
    try:
        own = ModelSettings.model_validate(own_model)
        chosen = ModelSettings.model_validate({**own_model, **_table(file, "model"), **_table(line, "model")})
    except ValidationError:  # which the validation of the whole reports
        return None, None
    if all(getattr(own, key) == getattr(chosen, key) for key in ("name", "revision", "distilled_lora")):
        return None, None
    return recommend(chosen), chosen


def _table(layer: Values, name: str) -> Values:
    table = layer.get(name)
    return table if isinstance(table, Mapping) else {}


def _first(layers: Sequence[Values], table: str, key: str) -> Any:
    found = (_look_up(layer, table, key) for layer in layers)
    return next((value for value in found if value is not None), None)


def _look_up(values: Values, table: str, key: str) -> Any:
    section = values.get(table)
    return section.get(key) if isinstance(section, Mapping) else None


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)
