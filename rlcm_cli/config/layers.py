"""The layers of a configuration, each overriding the ones before it.

    defaults < task preset < the preset's [embedded] table (embedded model only)
             < --config FILE.toml < the [embedded] table of FILE.toml (embedded model only)
             < --set key=value < named flags

A file that sets everything, such as a run's own configuration, is not based on a preset.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcm_cli.config.following import Recommend, find_following, follow_rewards
from rlcm_cli.config.presets import task_text
from rlcm_cli.config.settings import EMBEDDED_MODEL, EMBEDDED_MODELS, Config, ModelSettings, keep_commit
from rlcm_cli.config.validation import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards import REWARDS, is_address, is_code
from rlcm_cli.sections import choices_of
from rlcm_cli.toml_files import DEEPEST, parse_value, read_settings
from rlcm_cli.wording import expand_home, shorten

EMBEDDED_TABLE = "embedded"
"""What applies if the model is an embedded one; overrides the rest of the same file."""


CHOICES = tuple(choices_of(Config))
"""Tables that are one of several kinds: a layer of another kind replaces the one below."""
KINDS = tuple(f"{table}.kind" for table in CHOICES)


PER_TASK = ("prompts", "rewards", "combine")
"""What each task of a joint run sets for itself."""


def resolve_config(
    tasks: Sequence[str],
    *,
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Build the configuration of a run from its layers. See `resolve_settings`."""
    return resolve_settings(tasks, config_file=config_file, assignments=assignments, flags=flags)[0]


def resolve_settings(
    tasks: Sequence[str],
    *,
    config_file: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    recommend: Recommend | None = None,
) -> tuple[Config, list[str]]:
    """Build the configuration of a run from its layers; also return a line for each setting that followed another.

    Args:
        tasks: Names of presets; none: the one that `config_file` names. Several are trained together: the first
            provides all settings except prompts and rewards, which each keeps.
        config_file: TOML file or run with settings that override the preset.
        assignments: `key=value` with dotted keys and TOML values; a bare word is a string.
        flags: Dotted key → value; None means "not given".
        recommend: Returns how a model other than the preset's recommends to be sampled.

    Raises:
        ConfigError: If anything is invalid; names the key and where it was written.
    """
    file_layer, line = read_settings(config_file) if config_file else {}, _explicit([], assignments, flags)
    in_file = file_layer.get("task")
    if isinstance(in_file, str) and _is_whole(file_layer):
        if tasks and list(tasks) != [in_file]:
            raise ConfigError(
                f"--config {config_file}: is a whole configuration, of task {in_file}; leave out --task, or pass a "
                "file with only the settings that you change"
            )
        values = _explicit([file_layer], assignments, flags)
        notes = _follow(values, find_following(file_layer, {}, line, _model_of(file_layer), recommend))
        whole = parse_config(_drop_weightless(values))
        own = ModelSettings.model_construct(
            **file_layer.get("model", {})
        )  # a setting that is overridden may be invalid in it
        return whole.model_copy(update={"model": keep_commit(own, whole.model)}), notes
    names = list(dict.fromkeys(tasks)) or ([in_file] if isinstance(in_file, str) else [])
    if not names:
        raise ConfigError("no task given; use --task NAME (`rlcm tasks` lists them) or a `task` key in --config")
    # The model decides whether a preset's embedded layer applies.
    model_in_file = {key: value for key, value in file_layer.items() if key == "model"}
    model_choice = [assignment for assignment in assignments if assignment.startswith("model.")]
    preset = _layered(names[0], model_in_file, model_choice, {"model.name": (flags or {}).get("model.name")})
    file = _merge(_layers_of_file(file_layer, preset))
    following = find_following(preset, file, line, _model_of(tomllib.loads(task_text(names[0]))), recommend)
    if len(names) == 1:
        values = _layered(names[0], file_layer, assignments, flags)
        following += follow_rewards(preset, file, line, values.get("rewards"), _has_gradient)
        notes = _follow(values, following)
        return parse_config(_drop_weightless({**values, "task": names[0]})), notes
    if (flags or {}).get("prompts.source") is not None:
        raise ConfigError(
            "--prompts sets the prompts of a single task, but several tasks are given; use "
            "--set tasks.NAME.prompts.source=SOURCE"
        )
    if (flags or {}).get("rewards") is not None:
        raise ConfigError(
            "--reward sets the rewards of a single task, but several tasks are given; use "
            "--set tasks.NAME.rewards={...}"
        )
    members = {name: _layered(name, model_in_file, model_choice, flags) for name in names}
    together = {key: value for key, value in members[names[0]].items() if key not in PER_TASK}
    together["reward_settings"] = _merge([member.get("reward_settings", {}) for member in members.values()])
    together["tasks"] = {
        name: {key: member[key] for key in PER_TASK if key in member} for name, member in members.items()
    }
    values = _explicit([together, file_layer], assignments, flags)
    notes = _follow(values, following)
    return parse_config(_drop_weightless({**values, "task": "+".join(names)})), notes


def _has_gradient(reward: str) -> bool:
    """Say whether a reward has a gradient; nothing is known of a user's code, and a name may not exist."""
    if reward in REWARDS:
        return REWARDS[reward].differentiable
    return not is_code(reward) and not is_address(reward)


def _follow(values: dict[str, Any], following: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Set what follows from a user's own settings; return the lines that say so."""
    for key, value, _ in following:
        _assign(values, key, value)
    return [note for _, _, note in following if note]


def _model_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    model = layer.get("model", {})
    return model if isinstance(model, Mapping) else {}


def _layers_of_file(file_layer: Mapping[str, Any], preset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the layers of a file that apply to the model of a preset."""
    return [_without_embedded(file_layer), *_embedded_layers(file_layer, _model_name(preset))]


def _drop_weightless(values: dict[str, Any]) -> dict[str, Any]:
    """Drop rewards of weight 0, and their settings, from tasks that have others, so that they are never loaded."""
    values = copy.deepcopy(values)
    tasks = values.get("tasks", {})
    dropped, used = set[str](), set[str]()
    for task in [values, *(tasks.values() if isinstance(tasks, dict) else ())]:
        rewards = task.get("rewards") if isinstance(task, dict) else None
        if isinstance(rewards, dict) and any(rewards.values()):
            without = {name for name, weight in rewards.items() if type(weight) in (int, float) and weight == 0}
            task["rewards"] = {name: weight for name, weight in rewards.items() if name not in without}
            dropped |= without
        used |= set(task["rewards"]) if isinstance(rewards, dict) else set()
    monitor, settings = values.get("monitor"), values.get("reward_settings")
    if isinstance(monitor, dict) and isinstance(monitor.get("rewards"), list | tuple):
        used |= set(monitor["rewards"])
    if isinstance(settings, dict):
        values["reward_settings"] = {name: table for name, table in settings.items() if name not in dropped - used}
    return values


def _layered(
    task: str, file_layer: Mapping[str, Any], assignments: Sequence[str], flags: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Merge the layers of one preset."""
    preset = tomllib.loads(task_text(task))
    always, in_file = _without_embedded(preset), _without_embedded(file_layer)
    # The embedded layers do not choose the model that they are for.
    name = _model_name(_explicit([always, in_file], assignments, flags))
    layers = [always, *_embedded_layers(preset, name), in_file, *_embedded_layers(file_layer, name)]
    chosen = _explicit(layers, assignments, flags)
    if "tasks" in file_layer:
        for key in PER_TASK:
            if key not in file_layer:
                chosen.pop(key, None)
    return chosen


def _model_name(layer: Mapping[str, Any]) -> Any:
    return _model_of(layer).get("name", EMBEDDED_MODEL)


def _without_embedded(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in layer.items() if key != EMBEDDED_TABLE}


def _embedded_layers(layer: Mapping[str, Any], model: Any) -> list[dict[str, Any]]:
    """Return what a layer has for an embedded model: for all of them, then for this one. Raises `ConfigError`."""
    embedded = _table(layer, EMBEDDED_TABLE, EMBEDDED_TABLE)
    if model not in EMBEDDED_MODELS:
        return []
    of_all = {key: value for key, value in embedded.items() if key not in EMBEDDED_MODELS}
    return [of_all, _table(embedded, model, f"{EMBEDDED_TABLE}.{model}")]


def _table(layer: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    table = layer.get(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"'{name}' is {shorten(json.dumps(table))}, but it must be a table of settings")
    return table


def _is_whole(layer: Mapping[str, Any]) -> bool:
    """Return whether a layer leaves nothing to a preset, like the configuration of a run or a printed one."""
    return (Config.model_fields.keys() - {*PER_TASK, "tasks"}) <= layer.keys()


def override_config(
    config: Config, *, assignments: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Return a configuration with the two topmost layers of `resolve_config` applied to it."""
    return parse_config(_explicit([config.model_dump(mode="json")], assignments, flags))


def _explicit(
    layers: Sequence[Mapping[str, Any]], assignments: Sequence[str], flags: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Merge layers, then set single keys: `rewards.x=1` adds a reward, `rewards={x=1}` drops the others.

    The rewards and how they are combined are one choice: naming all rewards again drops `combine` from below.
    """
    values = _merge(layers)
    given = [parse_assignment(assignment) for assignment in assignments]
    given += [(key, value) for key, value in (flags or {}).items() if value is not None]
    # Rewards first: they drop the `combine` from below, not the one given with them.
    # And a kind before its settings: it drops those of another kind.
    for key, value in sorted(given, key=lambda one: (one[0] not in KINDS, one[0].endswith("combine"))):
        _assign(values, key, value)
    return dict(_expand_homes(values))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read `key=value` with a TOML value, where a bare word is a string. Raises `ConfigError`."""
    # An equals sign within quotes is part of the key.
    found = re.fullmatch(r"""((?:"[^"]*"|'[^']*'|[^="'])*)=(.*)""", text, re.DOTALL)
    key, equals, value = (found[1], "=", found[2]) if found else text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {shorten(text)}: write key=value, for example --set train.learning_rate=3e-4")
    try:
        return key.strip(), parse_value(value)
    except ConfigError as error:
        raise ConfigError(f"--set {shorten(key.strip())}={error}") from None


def split_key(dotted_key: str) -> list[str]:
    """Split a key at its dots, but not within TOML quotes or within the name of a reward.

    The name of a reward may be an address or a file: `rewards.mine.py:f`, `reward_settings.http://10.0.0.1:8000/x.patience`.
    Raises `ConfigError` for quotes that TOML does not read.
    """
    if '"' in dotted_key or "'" in dotted_key:
        try:
            table: Any = tomllib.loads(f"{dotted_key} = 0")
        except (tomllib.TOMLDecodeError, RecursionError):
            raise ConfigError(
                f"the key {shorten(dotted_key)} has quotes but is not a valid dotted TOML key; write for example "
                'reward_settings."http://host:8000/name".patience'
            ) from None
        parts = []
        while isinstance(table, dict) and len(table) == 1:
            ((part, table),) = table.items()
            parts.append(part)
        return parts
    parts = dotted_key.split(".")
    start = 2 if parts[0] == "tasks" else 0
    if parts[start : start + 1] == ["rewards"] and len(parts) > start + 2:
        return [*parts[: start + 1], ".".join(parts[start + 1 :])]
    if parts[0] == "reward_settings" and len(parts) > 3:
        return [parts[0], ".".join(parts[1:-1]), parts[-1]]
    return parts


def _assign(table: dict[str, Any], dotted_key: str, value: Any) -> None:
    *parents, last = split_key(dotted_key)
    if len(parents) > DEEPEST:
        raise ConfigError(f"unknown key '{shorten(dotted_key)}'")
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"'{dotted_key}': '{name}' is a value, not a table")
    below = table.get(last)
    if last == "rewards":
        table.pop("combine", None)
    if dotted_key in KINDS and below not in (None, value):
        table.clear()
    if dotted_key in CHOICES and isinstance(value, dict):
        table[last] = _merge([{last: below}, {last: value}])[last]
    elif isinstance(value, dict) and isinstance(below, dict) and last != "rewards":
        table[last] = _merge([below, value])
    else:
        table[last] = value


def _expand_homes(value: Any) -> Any:
    """Expand a leading `~` in every text and key: only paths begin with one."""
    match value:
        case str():
            return expand_home(value)
        case Mapping():
            return {expand_home(key): _expand_homes(item) for key, item in value.items()}
        case list() | tuple():
            return [_expand_homes(item) for item in value]
    return value


def _merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        if "rewards" in layer:
            merged.pop("combine", None)
        for key, value in layer.items():
            below = merged.get(key)
            if key in CHOICES and _is_another_kind(below, value):
                below = None  # settings of another kind do not apply to this one
            # A layer that names rewards replaces them; otherwise none could be dropped.
            if isinstance(value, Mapping) and isinstance(below, dict) and key != "rewards":
                merged[key] = _merge([below, value])
            else:
                merged[key] = dict(value) if isinstance(value, Mapping) else value
    return merged


def _is_another_kind(below: Any, value: Any) -> bool:
    tables = isinstance(below, Mapping) and isinstance(value, Mapping)
    return tables and "kind" in below and "kind" in value and below["kind"] != value["kind"]
