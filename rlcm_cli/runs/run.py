"""A run that phases work on: its directory, its configuration, and its share of the work."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlcm_cli.config import Config, differences, parse_config
from rlcm_cli.errors import ConfigError, RunMismatchError
from rlcm_cli.rewards import REWARDS, RewardSpec, is_code
from rlcm_cli.runs.inputs import TaskPrompts, begin_inputs, keep_inputs, read_prompts, task_prompts
from rlcm_cli.store.atomic import TEMPORARY_SUFFIX
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.run import publish_config, read_config, sweep
from rlcm_cli.wording import command

RECORDED_PACKAGES = ("rlcm", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """A run directory with its resolved configuration."""

    layout: RunLayout
    config: Config

    @functools.cached_property
    def prompts(self) -> Mapping[str, TaskPrompts]:
        """Prompts of each task, by its name. Raises as `task_prompts`."""
        return task_prompts(self.layout, self.config)

    def all_prompts(self) -> list[str]:
        """Return the prompts of all tasks, to train on and held out."""
        return [prompt for own in self.prompts.values() for prompt in (*own.training, *own.held_out)]

    def reward_specs(self) -> dict[str, RewardSpec]:
        """Return the rewards that are trained on or monitored, by name."""
        settings = self.config.reward_settings
        return {name: RewardSpec(name, settings.get(name, {})) for name in self.config.reward_names()}

    def reward_bounds(self) -> dict[str, tuple[float, float]]:
        """Return the least and the largest value of each reward that is trained on or monitored."""
        return {name: spec.entry.bounds for name, spec in self.reward_specs().items()}

    def scored_tasks(self, reward: str) -> list[str]:
        """Tasks whose samples get a reward: those that are trained for it, or all where none is."""
        tasks = self.config.joint_tasks()
        trained = [name for name, task in tasks.items() if reward in task.rewards]
        return trained or list(tasks)


def check_run(root: Path, config: Config) -> Run:
    """Return the run that a configuration makes of a directory, and write nothing.

    A run that is there keeps to the commit of the hub that its model was.

    Raises `RunMismatchError` where the directory was made with another identity (`[runtime]` may differ),
    and `ConfigError` where it holds something else, or the rewards or prompts of the configuration cannot be.
    """
    layout = RunLayout(root)
    run = Run(layout, config)
    # Looked at before the configuration: another worker may be publishing that now.
    entries = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    occupied = any(name != layout.inputs.name and not name.endswith(TEMPORARY_SUFFIX) for name in entries)
    if layout.config.exists():
        saved = _read_config(layout)
        if config.model.commit is None:  # whoever asks for a branch again means the commit that it was
            run = Run(layout, pin_commit(config, saved.model.commit))
        changed = differences(identify(saved), identify(run.config))
        if changed:
            raise RunMismatchError(
                f"{root}: was made with other settings ({'; '.join(changed)}); resume with its own by "
                f"`{command('loop', '--run', root)}`, choose another --run, or remove the directory (only the "
                f"settings of [runtime], {', '.join(type(config.runtime).model_fields)}, those of [monitor] and "
                "[ray], and evaluate.every may change)"
            )
    elif occupied and not (layout.quarantine / layout.config.name).exists():
        raise ConfigError(f"{root}: is not empty and no run directory; choose another --run")
    check_rewards(run)
    if not layout.config.exists():  # later they are read where they are drawn; who scores need not have them
        read_prompts(config)
    return run


def pin_commit(config: Config, commit: str | None) -> Config:
    """Return a configuration whose model of the hub is that of a commit."""
    return config.model_copy(update={"model": config.model.model_copy(update={"commit": commit})})


def check_rewards(run: Run) -> None:
    """Raise `ConfigError` where a reward of the configuration cannot be; loads none."""
    sample, evaluation = run.config.sample, run.config.evaluate
    check_last_step(run)
    monitored = run.config.monitor.rewards
    for name, spec in run.reward_specs().items():
        _ = spec.resolved
        # A reward that is only monitored may have scores of rollouts only.
        drawn_together = (
            sample.group_size if name in monitored else min(sample.group_size, evaluation.images_per_prompt)
        )
        if spec.entry.set_level and drawn_together < 2:
            raise ConfigError(
                f"reward '{name}' compares the images of a prompt: set sample.group_size (now {sample.group_size}) "
                f"and evaluate.images_per_prompt (now {evaluation.images_per_prompt}) to 2 or more"
            )


def check_last_step(run: Run) -> None:
    """Raise `ConfigError` where back-propagation has no differentiable reward; of code only loading it could tell."""
    if run.config.last_step.mode != "backprop":
        return
    specs = run.reward_specs()
    trained = {name: specs[name] for task in run.config.joint_tasks().values() for name in task.rewards}
    if not any(spec.entry.differentiable or is_code(name) for name, spec in trained.items()):
        raise ConfigError(
            f"last_step.mode backprop needs a differentiable reward, and none of {', '.join(trained)} is; the "
            f"differentiable ones are {', '.join(name for name, entry in REWARDS.items() if entry.differentiable)}"
        )


def identify(config: Config) -> dict[str, Any]:
    """Return the settings that a run directory fixes for good; where a judge is asked is none of them."""
    values = config.identity()
    lasting = {
        name: {key: value for key, value in settings.items() if key not in RewardSpec(name).entry.placement}
        for name, settings in values["reward_settings"].items()
    }
    return {**values, "reward_settings": {name: settings for name, settings in lasting.items() if settings}}


def create_run(root: Path, config: Config) -> Run:
    """Open a run directory for a configuration, making it where there is none. Raises as `check_run`.

    What killed processes have left half-written in it is removed.
    """
    run = check_run(root, config)
    if not run.layout.config.exists():
        begin_inputs(run.layout, config)  # before the file that says that the run is there
        publish_config(run.layout, config.to_json(), _versions())
        check_run(root, config)  # another process may have been first, with other settings
        keep_inputs(run.layout, config)
    sweep(run.layout)
    return run


def open_run(root: Path) -> Run:
    """Open a run directory with the configuration that it holds."""
    layout = RunLayout(root)
    return Run(layout, _read_config(layout))


def _read_config(layout: RunLayout) -> Config:
    try:
        return parse_config(read_config(layout))
    except ConfigError as error:
        raise ConfigError(f"{layout.config}: {error}") from None


def _versions() -> dict[str, str]:
    found = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
