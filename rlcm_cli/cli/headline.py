"""What a run trains for, in a line that distinguishes it from other runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rlcm_cli.samplers import write_setting
from rlcm_cli.wording import count

if TYPE_CHECKING:
    from rlcm_cli.config import Config
    from rlcm_cli.models.latent_model import LatentModel


def describe_goal(config: Config) -> str:
    """Describe what a run trains for, how, and on how many images."""
    tasks = {name: describe_sum(task.rewards) for name, task in config.joint_tasks().items()}
    goals = list(tasks.values()) if len(tasks) == 1 else [f"{name} ({goal})" for name, goal in tasks.items()]
    images = count(config.sample.samples, "image")
    cycles = count(config.runtime.iterations, "iteration")
    monitored = ", ".join(shorten_names(config.monitor.rewards).values())
    end = f"; monitoring {monitored}" if monitored else ""
    return f"trained for {', '.join(goals)}; objective {config.objective.kind}; {images} × {cycles}{end}"


def describe_sampling(config: Config, model: LatentModel | None) -> str:
    """Describe how images are sampled and what is trained; `model`: as loaded, None where it is not loaded here."""
    chosen = config.sampler.model_dump(exclude_defaults=True, exclude_none=True, exclude={"kind"})
    settings = ", ".join(f"{name} {write_setting(value)}" for name, value in chosen.items())
    sampler = config.sampler.kind + (f" ({settings})" if settings else "")
    sides = model.image_size if model else config.model.image_sides
    size = f", {sides[1]}×{sides[0]} pixels" if sides else ""
    bits = f", denoiser in {config.model.quantize[0]} bits" if config.model.quantize else ""
    targets = config.lora.target_modules or (model.family.lora_targets if model else ())
    where = f" on {', '.join(targets)}" if targets else ""
    whole = config.train.parameters == "full"
    trained = "all weights of the denoiser" if whole else f"a LoRA of rank {config.lora.rank}{where}"
    steps = count(config.sample.steps, "step")
    return f"sampler {sampler}, {steps}, guidance {config.sample.guidance_scale:g}{size}{bits}; trained: {trained}"


def describe_sum(rewards: Mapping[str, float]) -> str:
    """Write weighted rewards as a sum, such as `compressibility + 2 × recognition − 0.5 × sharpness`."""
    short = shorten_names(rewards)
    text = ""
    for name, weight in rewards.items():
        size = "" if abs(weight) == 1 else f"{abs(weight):g} × "
        sign = ("−" if weight < 0 else "") if not text else (" − " if weight < 0 else " + ")
        text += f"{sign}{size}{short[name]}"
    return text


def describe_dropped(config: Config) -> str | None:
    """Name the rewards of its preset that a configuration lacks; None if it has them all, or several tasks."""
    from rlcm_cli.config import resolve_config, task_names

    if config.task not in task_names() or config.tasks:
        return None
    preset = resolve_config([config.task], flags={"model.name": config.model.name}).rewards
    dropped = {name: weight for name, weight in preset.items() if name not in config.rewards}
    if not dropped:
        return None
    return (
        f"--reward replaces the rewards of the preset {config.task} ({describe_sum(preset)}); this run trains without "
        f"{', '.join(dropped)}"
    )


def shorten_names(names: Iterable[str]) -> dict[str, str]:
    """Return name → short name: a function without its file, a served reward without its server.

    Names whose short names would be equal stay unchanged.
    """
    every = list(dict.fromkeys(names))
    short = {name: _shorten(name) for name in every}
    shortened = list(short.values())
    return {name: short[name] if shortened.count(short[name]) == 1 else name for name in every}


def _shorten(name: str) -> str:
    if name.startswith(("http://", "https://")):
        return PurePosixPath(name.partition("?")[0]).name or name
    file, colon, function = name.rpartition(":")
    return function if colon and file.endswith(".py") and function else name
