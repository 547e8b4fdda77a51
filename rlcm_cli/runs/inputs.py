"""The prompts and real images of a run: read from their sources once, when it begins, and from the run ever after.

A run keeps the prompts that it began with, also on machines that lack the file. So a source that only a run's
configuration names, which may come from elsewhere, is never read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlcm_cli.config import Config, PretrainingSettings
from rlcm_cli.errors import ConfigError, ForeignFileError, MissingFileError, RunMismatchError
from rlcm_cli.prompts import PROMPT_SETS, load_prompts, split_prompts
from rlcm_cli.prompts.pairs import Pairs, open_pairs
from rlcm_cli.store.identity import identify_run, read_run_identity
from rlcm_cli.store.inputs import Inputs, publish_inputs, read_inputs
from rlcm_cli.store.layout import RunLayout

if TYPE_CHECKING:  # what needs only the prompts needs no torch
    from rlcm_cli.models.latent_model import LatentModel

SHOWN = 3
"""Prompts that a message shows."""


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of a task."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    """Never trained on, by this task or by another that is trained with it."""


def read_prompts(config: Config) -> dict[str, TaskPrompts]:
    """Read the prompts of each task from their sources. Raises `ConfigError`."""
    return split_tasks(config, {source: load_prompts(source) for source in prompt_sources(config)})


def split_tasks(config: Config, prompts: Mapping[str, tuple[str, ...]]) -> dict[str, TaskPrompts]:
    """Part the prompts of each task, by name of the task; a prompt that one task holds out, all do.

    Args:
        config: Names each task's source and the fraction that is held out of it.
        prompts: Of each source.

    Raises:
        ConfigError: If a task has no prompt left to train on.
    """
    tasks = config.joint_tasks()
    held_out = {
        prompt
        for task in tasks.values()
        for prompt in split_prompts(prompts[task.prompts.source], task.prompts.held_out_fraction)[1]
    }
    split = {}
    for name, task in tasks.items():
        own = prompts[task.prompts.source]
        training = tuple(prompt for prompt in own if prompt not in held_out)
        if not training:
            raise ConfigError(
                f"the tasks trained with '{name}' hold out all of its {len(own)} prompts; lower their "
                "prompts.held_out_fraction, or give it other prompts"
            )
        split[name] = TaskPrompts(training, tuple(prompt for prompt in own if prompt in held_out))
    return split


def prompt_sources(config: Config) -> list[str]:
    """Name the sources of a configuration's prompts, each once."""
    return list(dict.fromkeys(task.prompts.source for task in config.joint_tasks().values()))


def begin_inputs(layout: RunLayout, config: Config) -> None:
    """Read the sources of a run that is being made, and write down what it begins with. Raises `ConfigError`."""
    inputs, run = _take_inputs(config), identify_run(json.loads(config.to_json()))
    if layout.config.exists() and read_run_identity(layout) != run:
        return  # while the sources were read, another process was first, with other settings
    publish_inputs(layout, inputs, run)


def _take_inputs(config: Config) -> Inputs:
    return Inputs({source: load_prompts(source) for source in prompt_sources(config)}, _digest_images(config))


def keep_inputs(layout: RunLayout, config: Config) -> None:
    """Write down what a run that was just made begins with again, where a process that came second wrote its own."""
    try:
        read_inputs(layout)
    except ForeignFileError:
        begin_inputs(layout, config)


def task_prompts(layout: RunLayout, config: Config) -> dict[str, TaskPrompts]:
    """Return the prompts of each task that a run began with; of one that is not made yet, those of its sources.

    Raises `MissingFileError` where the run keeps none and they are not built in.
    """
    if not layout.config.exists():
        return read_prompts(config)
    inputs = read_inputs(layout)
    kept = inputs.prompts if inputs else {}
    prompts = {}
    for source in prompt_sources(config):
        if source not in kept and source not in PROMPT_SETS:
            raise MissingFileError(_explain_missing(layout, source, config))
        prompts[source] = kept[source] if source in kept else load_prompts(source)
    return split_tasks(config, prompts)


def settle_inputs(layout: RunLayout, config: Config, named: Collection[str]) -> None:
    """Compare the sources that a user names with what the run began with, and write that down where it was not.

    Raises `RunMismatchError` where a source has changed since.
    """
    if not layout.config.exists():
        return
    inputs = read_inputs(layout)
    sources = prompt_sources(config)
    images = config.pretraining.source
    if inputs is None:
        unnamed = [source for source in sources if source not in named and source not in PROMPT_SETS]
        if not unnamed and (images is None or images in named):
            publish_inputs(layout, _take_inputs(config), read_run_identity(layout))
        return
    for source in sources:
        if source in named and source in inputs.prompts and not source.startswith("hf:"):
            _compare(layout, source, inputs.prompts[source])


def refuse_unnamed(config: Config, named: Collection[str], where: str) -> None:
    """Raise `ConfigError` where a configuration from elsewhere has sources that the user has not named."""
    sources = [source for source in prompt_sources(config) if source not in PROMPT_SETS]
    sources += [config.pretraining.source] if config.pretraining.source is not None else []
    for source in sources:
        if source not in named:
            setting = _setting_of(source, config)
            raise ConfigError(
                f"{where}: is a run's, and reads {source!r}, which only it names; if you trust it, name it, too: "
                f"--set '{setting}={source}'"
            )


def check_images(layout: RunLayout, config: Config) -> None:
    """Raise `RunMismatchError` where a run's real images have changed since it began.

    Raises `MissingFileError` where the run does not say which they were.
    """
    source = config.pretraining.source
    if source is None or not layout.config.exists():
        return
    inputs = read_inputs(layout)
    if inputs is None or source not in inputs.images:
        raise MissingFileError(_explain_missing(layout, source, config))
    if _digest_images(config)[source] != inputs.images[source]:
        raise RunMismatchError(
            f"pretraining.source {source!r}: its images or captions have changed since the run {layout.root} began; "
            "put them back, or choose another --run"
        )


def find_pairs(config: Config, model: LatentModel) -> Pairs | None:
    """Open the images that a configuration names; None where it names none.

    Raises `ConfigError` where they cannot be had, or the model is none that is trained so.
    """
    if config.pretraining.source is None:
        return None
    if not model.sampler.fits_pretraining:
        raise ConfigError(
            f"pretraining.source is set, and the sampler is {model.sampler.kind}: a consistency model was not "
            "trained to denoise; leave it out (train.kl_weight also holds on to the base model)"
        )
    return open_images(config.pretraining)


@functools.cache
def open_images(settings: PretrainingSettings) -> Pairs:
    """Open the images that settings name, once a process. Raises `ConfigError`."""
    return open_pairs(str(settings.source), image_column=settings.image_column, caption_column=settings.caption_column)


def _digest_images(config: Config) -> dict[str, str]:
    source = config.pretraining.source
    return {} if source is None else {source: open_images(config.pretraining).digest}


def _compare(layout: RunLayout, source: str, kept: tuple[str, ...]) -> None:
    try:
        found = load_prompts(source)
    except ConfigError:  # not on this machine, say: the run has its own
        return
    if found == kept:
        return
    changes = [
        f"{word} {_show(prompts)}"
        for word, prompts in (("new", set(found) - set(kept)), ("gone", set(kept) - set(found)))
        if prompts
    ]
    raise RunMismatchError(
        f"prompts {source!r}: changed since the run {layout.root} began ({'; '.join(changes) or 'another order'}); "
        f"resume with the run's own by `rlcm loop --run {layout.root}`, or choose another --run"
    )


def _show(prompts: Collection[str]) -> str:
    shown = ", ".join(repr(prompt) for prompt in sorted(prompts)[:SHOWN])
    return f"{len(prompts)}: {shown}" + (", …" if len(prompts) > SHOWN else "")


def _explain_missing(layout: RunLayout, source: str, config: Config) -> str:
    return (
        f"{layout.inputs}: is not there, and what only a run names is not read; if you trust its {source!r}, name it: "
        f"`rlcm sample --run {layout.root} --set '{_setting_of(source, config)}={source}'`"
    )


def _setting_of(source: str, config: Config) -> str:
    if source == config.pretraining.source:
        return "pretraining.source"
    of_task = next((name for name, task in config.tasks.items() if task.prompts.source == source), None)
    return f"tasks.{of_task}.prompts.source" if of_task else "prompts.source"
