"""`rlcm loop`."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import Asked, parse_rewards, resolve_run, settle_sources
from rlcm_cli.cli.completion import complete_setting
from rlcm_cli.cli.headline import describe_dropped, describe_goal, describe_sampling
from rlcm_cli.cli.location import Location, local_path, open_location
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce
from rlcm_cli.cli.variations import Variation, check_variations, locate, vary
from rlcm_cli.errors import ConfigError
from rlcm_cli.store.remote.objects import is_url
from rlcm_cli.wording import command, count

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.config import Config
    from rlcm_cli.phases.loop import StartedLoop
    from rlcm_cli.processes.job import Processes
    from rlcm_cli.report.trackers import RunTrackers
    from rlcm_cli.runs.run import Run

FULL_SIZE = {
    "emoji-lcm": "SimianLuo/LCM_Dreamshaper_v7",
    "emoji-diffusion": "CompVis/stable-diffusion-v1-4",
    "emoji-sprint": "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers",
    "emoji-sana": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
}
"""What each embedded model stands for."""
SETTINGS = (
    "prompts.source", "monitor.rewards", "monitor.on_hacking", "model.name", "sampler.kind", "objective.kind",
    "train.parameters", "last_step.mode", "runtime.iterations", "runtime.stop_when_flat", "sample.samples",
    "sample.steps",
    "runtime.device", "runtime.offload", "runtime.memory_budget", "runtime.shard_weights", "model.dtype",
    "model.quantize", "model.tiled_decoding", "model.image_size", "train.kl_weight",
    "runtime.keep_rollouts", "runtime.keep_checkpoints", "runtime.log_with", "ray.address",
)  # fmt: skip
"""Settings that are options of the command."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "loop",
        cls=command_with(*SETTINGS),
        epilog="Example: rlcm loop --task compression --iterations 40 --seed 1",
    )(loop_command)


def loop_command(
    context: typer.Context,
    tasks: o.TaskOption = [],
    root: o.RunOption = None,
    config_file: o.ConfigOption = None,
    assignments: o.SetOption = [],
    rewards: o.RewardOption = [],
    start: o.FromOption = None,
    seeds: Annotated[
        str | None,
        o.setting("--seed", "N[,N]", "Seed of all randomness; several make a run each, in DIR/seed-N."),
    ] = None,
    sweeps: Annotated[
        list[str],
        o.setting(
            "--sweep",
            "KEY=VALUE,VALUE",
            "Make a run for each value of a setting, in a folder of DIR; repeat it for a grid.",
            complete=complete_setting,
        ),
    ] = [],
    executor: Annotated[
        Literal["local", "ray"], typer.Option("--executor", help="Where to run: this machine, or a Ray cluster.")
    ] = "local",
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],
    allow_changed: o.AllowChangedOption = False,
    no_cache: o.NoCacheOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved configuration as TOML, which --config accepts, and exit.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Fine-tune for a reward: sample, score and train, again and again.

    Rerun the same command to resume a run; a larger --iterations extends a finished one.

    When resuming, only the tables runtime, monitor and ray, and evaluate.every, may change.
    """
    flags = {**chosen_settings(context), "rewards": parse_rewards(rewards)}
    choices = LoopChoices(executor, allow_code, tuple(allow_hosts), allow_changed, no_cache, quiet, as_json)
    variations = vary(Asked(tasks, config_file, assignments, flags, start), seeds, sweeps)
    if len(variations) > 1:
        run_several(root, variations, choices, dry_run=dry_run)
    elif dry_run:
        print_config(resolve_dry(root, variations[0].asked), as_json=as_json)
    else:
        display, result = run_one(root, variations[0].asked, choices)
        display.finish(result)


@dataclass(frozen=True)
class LoopChoices:
    """What a command line says of how to run, not of what."""

    executor: str
    allow_code: bool
    allow_hosts: Sequence[str]
    allow_changed: bool
    no_cache: bool
    quiet: bool
    as_json: bool


def run_several(
    root: str | None, variations: Sequence[Variation], choices: LoopChoices, *, dry_run: bool = False
) -> None:
    """Make several runs, one after the other; a rerun resumes the one that was interrupted."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.streams import print_data, say
    from rlcm_cli.config.text import write_config
    from rlcm_cli.processes.worker import is_launched

    places = locate(root, variations)
    folder = places[0].removesuffix(f"/{variations[0].name}")
    if not is_url(folder) and (local_path(folder) / "config.json").exists():
        raise ConfigError(
            f"{folder}: is a run, and several seeds or settings get a folder each in the one that --run names; choose "
            "another --run"
        )
    check_variations(variations)
    if dry_run:
        configs = {
            place: resolve_dry(place, variation.asked) for place, variation in zip(places, variations, strict=True)
        }
        if choices.as_json:
            print_json({"configs": {place: config.model_dump(mode="json") for place, config in configs.items()}})
        for place, config in () if choices.as_json else configs.items():
            print_data(f"# {place}\n{write_config(config)}\n")
        return
    if is_launched(os.environ):
        raise ConfigError(
            "--seed and --sweep make several runs one after the other, and a launcher's processes share one; start "
            "each run by itself"
        )
    if not (choices.quiet or choices.as_json):
        say(f"{count(len(places), 'run')}, one after the other: {', '.join(places)}")
    results = []
    for place, variation in zip(places, variations, strict=True):
        display, result = run_one(place, variation.asked, choices)
        results.append({**display.summary, **result})
        gc.collect()  # the model that was trained, before the next one is loaded
    if choices.as_json:
        print_json({"folder": folder, "runs": results})
    elif not choices.quiet:
        say(f"compare them: {command('compare', folder)}")


def resolve_dry(root: str | None, asked: Asked) -> Config:
    """Resolve and check the configuration of a run without starting it."""
    from rlcm_cli.runs.run import Run, check_rewards
    from rlcm_cli.runs.staging import stage_loop
    from rlcm_cli.store.layout import RunLayout

    with open_location(root, stage_loop) as location:
        path, config = resolve_run(location.root, asked, loads_model=False)
        config.require_actions()
        check_rewards(Run(RunLayout(path), config))
        return config


def run_one(root: str | None, asked: Asked, choices: LoopChoices) -> tuple[Display, dict[str, Any]]:
    """Start or resume a run and follow it to its end; return how it was shown, and what a program is told of it."""
    from rlcm_cli.runs.staging import stage_loop

    quiet, as_json = choices.quiet, choices.as_json
    with open_location(root, stage_loop, publishes=True) as location:
        path, config = resolve_run(location.root, asked, loads_model=choices.executor == "local")
        config.require_actions()
        announce(config.model.name, quiet=quiet, as_json=as_json)

        from rlcm_cli.cli.consent import Given, named_texts, permit
        from rlcm_cli.cli.display import Display
        from rlcm_cli.cli.tracking import open_trackers
        from rlcm_cli.processes.join import join_processes
        from rlcm_cli.runs.run import check_run
        from rlcm_cli.store.score_cache import open_cache

        processes = join_processes(config.runtime.device)
        run = check_run(path, config)
        settle_sources(run, asked)
        named = named_texts(
            asked.assignments, *(asked.flags.get(key) for key in ("rewards", "monitor.rewards", "ray.address"))
        )
        given = Given(named, choices.allow_code, choices.allow_hosts)
        trusted = permit(run, given, ray=choices.executor == "ray", of_a_run=asked.copies_run)
        trackers = open_trackers(run) if processes.leads else None
        display = Display(
            quiet=quiet, as_json=as_json, iterations=config.runtime.iterations, silent=not processes.leads
        )
        display.say_all(trusted)
        with open_cache(wanted=not choices.no_cache) as cache:
            if choices.executor == "ray":
                check_shared(location, processes, config)
                from rlcm_cli.ray.loop import start_on_ray

                started = start_on_ray(run, cached=not choices.no_cache, allow_changed=choices.allow_changed)
            else:
                from rlcm_cli.cli.memory import fit_memory
                from rlcm_cli.phases.loop import start_loop

                fit = fit_memory(display, "sample", "train")
                started = start_loop(
                    path, config, processes, cache=cache, allow_changed=choices.allow_changed, fit=fit
                )
            location.confirm(config)
            names_rewards = bool(asked.flags.get("rewards"))
            display.say_all(describe_start(started, location.describe(path), names_rewards=names_rewards))
            follow_loop(started, location, display, processes, trackers)
        processes.leave()
        return display, show_result(started.run, location, display) if processes.leads else {}


def print_config(config: Config, *, as_json: bool) -> None:
    """Print a configuration, as TOML or as a line of JSON."""
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.cli.streams import print_data
    from rlcm_cli.config.text import write_config

    if as_json:
        print_json({"config": config.model_dump(mode="json")})
    else:
        print_data(write_config(config))


def describe_start(started: StartedLoop, named: str, *, names_rewards: bool) -> Iterator[str]:
    """Describe what is about to run, a line each: the run, its goal, the device, and what is done already.

    `named`: the run as the user knows it. `names_rewards`: whether `--reward` was given.
    """
    config = started.run.config
    yield f"run {named}: task {config.task}, model {config.model.name}, seed {config.seed}"
    yield describe_goal(config)
    yield describe_sampling(config, started.model)
    dropped = describe_dropped(config) if names_rewards else None
    if dropped:
        yield dropped
    yield device_line(config.model.name, started.device)
    if config.runtime.shard_weights:
        yield "each process holds a part of the denoiser's frozen weights"
    done = (started.run.layout.checkpoints() or [0])[-1]
    if done >= config.runtime.iterations:
        yield f"nothing left to train: {done} iterations are done; extend the run with --iterations {2 * done}"
    elif done:
        yield f"resuming after iteration {done}"


def device_line(model: str, device: str) -> str:
    """Name the device, and a larger model where a GPU is idle under a laptop's model."""
    if device.startswith(("cuda", "mps")) and model in FULL_SIZE:
        return (
            f"device {device}: there is a GPU, so you could train a model of full size with --model "
            f"{FULL_SIZE[model]}; {model} is for trying things out"
        )
    return f"device {device}"


def follow_loop(
    started: StartedLoop, location: Location, display: Display, processes: Processes, trackers: RunTrackers | None
) -> None:
    """Run a loop: show, track and publish what it does."""
    from rlcm_cli.cli.live import look_at
    from rlcm_cli.cli.tracking import track
    from rlcm_cli.processes.join import check_shares

    run = started.run
    display.follow(check_shares(processes, run.config.sample.shards))
    display.follow(
        location.follow(track(started.events, trackers), loop=run if processes.leads else None),
        look_at(run.layout, run.config, location.describe(run.layout.root)),
    )


def show_result(run: Run, location: Location, display: Display) -> dict[str, Any]:
    """Draw a finished run's curves and its images before and after, and print what to do next.

    Returns what a program is told of it.
    """
    from rlcm_cli.report.run.before_after import write_pairs
    from rlcm_cli.report.run.curves import write_curves
    from rlcm_cli.runs.hacking import advise_checkpoint
    from rlcm_cli.runs.held_out import find_flat, read_held_out
    from rlcm_cli.store.metrics import read_metrics

    layout, config = run.layout, run.config
    picture, curves = write_pairs(layout), write_curves(layout, run.reward_bounds())
    if curves:
        display.say(f"{location.describe(curves)}: the rewards over the iterations")
    if picture:
        display.say(f"{location.describe(picture)}: the same held-out seeds before (left) and after (right)")
    options = ["--prompt", "cat", "--count", 8, "--steps", config.sample.steps]
    advised = advise_checkpoint(read_metrics(layout), config)
    flat = find_flat(read_held_out(layout, config), config) if config.runtime.stop_when_flat else None
    if advised and advised[0] in layout.checkpoints():
        best, name = advised
        generate = command("generate", "--lora", location.describe(layout.checkpoint(best)), *options)
        display.say(
            f"the newest checkpoint games the reward; generate with {best}, the best one by '{name}': {generate}"
        )
    elif flat and flat[0] in layout.checkpoints():
        generate = command("generate", "--lora", location.describe(layout.checkpoint(flat[0])), *options)
        display.say(f"generate with checkpoint {flat[0]}, the best on the held-out images: {generate}")
    else:
        display.say(f"generate with it: {command('generate', '--lora', location.describe(layout.root), *options)}")
    return {
        "run": location.describe(layout.root),
        "checkpoint": layout.checkpoints()[-1],
        "picture": picture and location.describe(picture),
    }


def check_shared(location: Location, processes: Processes, config: Config) -> None:
    """Raise `ConfigError` where the nodes of a Ray cluster could not see the run, or others divide the work."""
    if config.runtime.shard_weights:
        raise ConfigError(
            "--executor ray: its tasks hold whole models, and runtime.shard_weights shares one among the processes of "
            "a launcher; leave one out"
        )
    if location.url is not None:
        raise ConfigError(
            f"--executor ray: all nodes must see the run directory under the same path, and {location.url} is a URL; "
            "name a shared folder, or run `rlcm sample`, `score` and `train` on the machines in turn"
        )
    if processes.size > 1:
        raise ConfigError(
            "--executor ray: Ray divides the work itself, but torchrun or accelerate started several processes; start "
            "`rlcm loop` without a launcher"
        )
