"""Several runs of one command: seeds and a grid of settings, each an ordinary run in its own folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlcm_cli.errors import ConfigError

if TYPE_CHECKING:
    from rlcm_cli.cli.asked import Asked

LONGEST_NAME = 120
"""Letters of a folder's name."""


@dataclass(frozen=True)
class Variation:
    """One of the runs of a command."""

    name: str
    """Of its folder within the one that is named; empty: it is the only run, and the named folder is its own."""
    asked: Asked


def vary(asked: Asked, seeds: str | None, sweeps: Sequence[str]) -> list[Variation]:
    """List the runs that a command asks for: for each combination of swept settings, each seed.

    Args:
        asked: The rest of the command line.
        seeds: `N` or `N,N,…`; None: not given.
        sweeps: `KEY=VALUE,VALUE,…` of each option.

    Raises:
        ConfigError: If a value is given twice, or a setting is swept that is given otherwise.
    """
    numbers: list[int | None] = [*read_seeds(seeds)] or [None]
    grid = [read_sweep(text, asked) for text in sweeps]
    keys = [key for key, _ in grid]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--sweep {key}: is given twice; give it once, with all of its values")
    names = name_keys(keys)
    several = len(numbers) > 1
    variations = []
    for values in itertools.product(*(values for _, values in grid)):
        settings = list(zip(keys, values, strict=True))
        for seed in numbers:
            parts = [f"{names[key]}-{clean_name(value)}" for key, value in settings]
            chosen = replace(
                asked,
                assignments=[*asked.assignments, *(f"{key}={value}" for key, value in settings)],
                flags={**asked.flags, "seed": seed},
            )
            variations.append(Variation("-".join([*parts, *([f"seed-{seed}"] if several else [])]), chosen))
    check_names([variation.name for variation in variations])
    return variations


def read_seeds(text: str | None) -> list[int]:
    """Read `N` or `N,N,…`."""
    if text is None:
        return []
    if not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", text):
        raise ConfigError(f"--seed {text}: write a whole number from 0, or several such as 1,2,3")
    seeds = [int(part) for part in text.split(",")]
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ConfigError(f"--seed {text}: {seed} is there twice; a seed makes one run")
    return seeds


def read_sweep(text: str, asked: Asked) -> tuple[str, list[str]]:
    """Read `KEY=VALUE,VALUE,…`: the key, and its values as they were written."""
    key, equals, rest = text.partition("=")
    key, values = key.strip(), [value.strip() for value in rest.split(",")]
    if not (key and equals and all(values)):
        raise ConfigError(f"--sweep {text}: write KEY=VALUE,VALUE, such as --sweep train.learning_rate=3e-4,1e-3")
    if any(letter in rest for letter in "[]{}\"'"):
        raise ConfigError(f"--sweep {key}: lists, tables and quotes cannot be swept; start a run for each by --set")
    if key == "seed":
        raise ConfigError(f"--sweep seed: use --seed {rest}")
    if len(values) < 2:
        raise ConfigError(f"--sweep {key}: has one value; use --set {key}={rest}, or name several")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"--sweep {key}: {value} is there twice")
    if any(one.partition("=")[0].strip() == key for one in asked.assignments):
        raise ConfigError(f"--sweep {key}: is set by --set, too; leave one out")
    if asked.flags.get(key) is not None:
        raise ConfigError(f"--sweep {key}: is set by its own option, too; leave one out")
    return key, values


def name_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return key → its last part, or all of it where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: clean_name(key if last.count(end) > 1 else end) for key, end in zip(keys, last, strict=True)}


def clean_name(text: str) -> str:
    """Return a text as part of a folder's name; of a path or a name of the hub its last part."""
    return re.sub(r"[^A-Za-z0-9.+_-]", "_", text.rstrip("/").rpartition("/")[2])


def check_names(names: Sequence[str]) -> None:
    """Raise `ConfigError` where two runs would have one folder, or a folder a very long name."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--sweep: two runs would be in the folder {name}; start them one by one")
        if len(name) > LONGEST_NAME:
            raise ConfigError(f"--sweep: the folder's name {name[:40]}… is too long; sweep fewer settings at a time")


def check_variations(variations: Sequence[Variation]) -> None:
    """Raise `ConfigError` where a run cannot be, or two would compute the same, before the first one starts.

    Where a command only resumes runs, each has its own configuration.
    """
    from rlcm_cli.cli.asked import ask_model_if_here
    from rlcm_cli.config import resolve_settings
    from rlcm_cli.runs.run import identify

    known: list[tuple[str, object]] = []
    for variation in variations:
        asked = variation.asked
        if not asked.tasks and asked.config_file is None:
            continue
        config, _ = resolve_settings(
            asked.tasks,
            config_file=asked.config_file,
            assignments=asked.assignments,
            flags=asked.flags,
            recommend=ask_model_if_here,
        )
        identity = identify(config)
        twin = next((name for name, other in known if other == identity), None)
        if twin is not None:
            raise ConfigError(
                f"--sweep: {twin} and {variation.name} would be the same run, because their settings are equal or do "
                "not change what is computed"
            )
        known.append((variation.name, identity))


def locate(root: str | None, variations: Sequence[Variation]) -> list[str]:
    """Return the location of each of several runs: a folder in the one that is named, by default `runs/TASK`."""
    from rlcm_cli.cli.asked import resolve_run

    base = root or str(resolve_run(None, variations[0].asked, loads_model=False)[0])
    return [f"{base.rstrip('/')}/{variation.name}" for variation in variations]
