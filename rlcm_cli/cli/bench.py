"""`rlcm bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import ask_model
from rlcm_cli.cli.completion import complete_architecture, complete_reward
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce
from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import format_duration, format_gb, format_size

if TYPE_CHECKING:
    from rich.table import Table

    from rlcm_cli.config import Config, ModelSettings
    from rlcm_cli.measuring.bench import Bench, Measured
    from rlcm_cli.models.latent_model import LatentModel
    from rlcm_cli.recommendation import Recommendation

DEFAULT_TASK = "compression"
SETTINGS = (
    "model.name", "model.dtype", "model.quantize", "model.image_size", "runtime.device", "runtime.memory_budget",
    "sample.steps",
)  # fmt: skip
"""Settings that are options of the command."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "bench",
        cls=command_with(*SETTINGS),
        epilog="Example: rlcm bench --architecture sd15-lcm --dtype bfloat16 --size 512",
    )(bench_command)


def bench_command(
    context: typer.Context,
    architecture: Annotated[
        str | None,
        o.setting(
            "--architecture",
            "NAME",
            "Use a randomly initialised model of this architecture, such as sd15-lcm, without its text encoders.",
            complete=complete_architecture,
        ),
    ] = None,
    tasks: Annotated[
        list[str],
        o.setting(
            "--task", "NAME", "Preset to estimate the time of; repeatable; the first is measured.", DEFAULT_TASK
        ),
    ] = [],
    assignments: o.SetOfPresetOption = [],
    reward: Annotated[
        str, o.setting("--reward", "NAME", "Reward to measure.", True, complete_reward)
    ] = "compressibility",
    batches: Annotated[
        str | None,
        o.setting("--batch", "N,N,N", "Batch sizes to measure.", "doubled while that is faster and fits"),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0, help="Minimum duration of each measurement.")
    ] = 0.5,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Measure how fast this machine samples, decodes, scores and trains, and suggest batch sizes."""
    from rlcm_cli.config import parse_size

    flags = chosen_settings(context)
    configs = resolve_presets(tasks, assignments, flags, architecture)
    config = next(iter(configs.values()))
    config.require_actions()
    sizes = parse_batches(batches)
    budget = config.runtime.memory_budget
    announce(config.model.name, quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.display import Display
    from rlcm_cli.measuring.bench import bench
    from rlcm_cli.rewards import RewardSpec, load_reward

    spec = RewardSpec(reward)
    if spec.entry.set_level:
        raise ConfigError(
            f"--reward {reward}: compares the images of a prompt, which bench cannot measure; name another"
        )
    loaded_reward = load_reward(spec)
    display = Display(quiet=quiet, as_json=as_json)
    with display.console.status("", spinner="line") as status:
        status.update("loading the model")
        found = bench(
            config,
            load(config, architecture),
            loaded_reward,
            batches=sizes,
            tasks=configs,
            budget=parse_size(budget) if budget else None,
            seconds=seconds,
            tell=lambda what: status.update(f"measuring {what}"),
        )
    if not quiet:
        for line in render(config.model.name, found, reward):
            display.console.print(line)
    display.finish({"model": config.model.name, "reward_name": reward, **to_values(found)})


def resolve_presets(
    tasks: Sequence[str], assignments: Sequence[str], flags: Mapping[str, Any], architecture: str | None
) -> dict[str, Config]:
    """Resolve the configuration of each preset; an architecture is the model of all. Raises `ConfigError`."""
    from rlcm_cli.config import resolve_settings

    if flags["model.name"] is not None and architecture is not None:
        raise ConfigError("--model and --architecture both name a model; give only one of them")
    if architecture is not None:
        flags = {**flags, "model.name": architecture}
    ask = ask_model if architecture is None else ask_architecture
    names = list(dict.fromkeys(tasks)) or [DEFAULT_TASK]
    return {name: resolve_settings([name], assignments=assignments, flags=flags, recommend=ask)[0] for name in names}


def ask_architecture(model: ModelSettings) -> Recommendation:
    """Return how the published model of an architecture is drawn. Raises `ModelError` for an unknown one."""
    from rlcm_cli.models.parts import recommend_architecture

    return recommend_architecture(model.name)


def load(config: Config, architecture: str | None) -> LatentModel:
    """Build the architecture or load the model of the configuration."""
    from rlcm_cli.models.architectures import build_architecture
    from rlcm_cli.runs.policy import choose_variant, load_configured_model

    settings, device = config.model, config.runtime.device
    if architecture is not None:
        return build_architecture(
            architecture,
            dtype=settings.dtype,
            device=device,
            variant=choose_variant(settings),
        )
    return load_configured_model(settings, config.sampler.kind, device)


def parse_batches(text: str | None) -> list[int] | None:
    """Read `1,2,4`; None stays None. Raises `ConfigError`."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--batch {text}: write batch sizes such as --batch 1,2,4,8")
    return [int(part) for part in parts]


def render(name: str, found: Bench, reward: str) -> list[Table | str]:
    """Return the table and the lines below it."""
    from rich.table import Table

    height, width = found.image_size
    table = Table(title=f"{name}, {width} × {height} pixels, {found.dtype}, {found.device}")
    for heading in ("", "batch", "per second", "spread", "of the peak", "memory"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    kinds = {
        f"images sampled, {found.steps} calls": found.sampling,
        "images decoded": found.decoding,
        "transitions trained": found.training,
        "images scored": [found.reward],
    }
    for kind, rows in kinds.items():
        for number, row in enumerate(rows):
            table.add_row(kind if not number else "", *_cells(row), end_section=row is rows[-1])
    on_gpu = found.device.startswith("cuda")
    memory = "peak of tensors on the device" if on_gpu else "the process's resident high-water mark so far"
    lines: list[Table | str] = [
        table,
        f"peak: {found.matrix_peak / 1e12:.3g} TFLOP/s of large matrix products, on a CPU also of a convolution; "
        f"memory: {memory}; reward: {reward}",
        f"floating-point operations: {_tera(found.flops.call)} per model call and image, {_tera(found.flops.decode)} "
        f"per decoded image, {_tera(found.flops.transition)} per transition",
        f"precision: replayed before any update, the ratio drifts by {found.ratio_drift:.1e}{_compare_drift(found)}",
    ]
    if found.fit is not None:
        how = "measured" if found.fit.measured else "estimated from the tensors of one and two transitions"
        again = "with gradient checkpointing" if found.fit.gradient_checkpointing else "without gradient checkpointing"
        lines.append(
            f"memory budget: micro-batch {found.fit.micro_batch_size}, {again}, takes "
            f"{format_gb(found.fit.peak_bytes)} ({how})"
        )
    elif found.largest_micro_batch is not None:
        lines.append(f"largest micro-batch that fits: {found.largest_micro_batch}")
    lines += [
        f"{projection.task}: {projection.work.images:,} images, {projection.work.transitions:,} transitions: about "
        f"{format_duration(projection.seconds)} (without evaluations and file writing)"
        for projection in found.projections
    ]
    settings = " ".join(f"--set {key}={str(value).lower()}" for key, value in found.suggestions.items())
    return [*lines, f"suggested settings: {settings}"]


def to_values(found: Bench) -> dict[str, Any]:
    """Return what was measured as plain values for JSON."""
    from dataclasses import asdict

    return asdict(found)


def _compare_drift(found: Bench) -> str:
    if found.clip_range is None:
        return ""
    return f", {found.ratio_drift / found.clip_range:.1%} of the clip range {found.clip_range:.0e}"


def _cells(row: Measured) -> list[str]:
    timing = row.timing
    spread = (timing.slowest - timing.fastest) / timing.median
    share = "" if row.peak_share is None else f"{row.peak_share:.1%}"
    return [str(row.batch), rate_text(row.rate), f"{spread:.0%}", share, format_size(row.peak_bytes)]


def rate_text(rate: float) -> str:
    """Return three digits of a rate, without an exponent."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _tera(count: float) -> str:
    return f"{count / 1e12:.3g} TFLOP" if count >= 1e11 else f"{count / 1e9:.3g} GFLOP"
