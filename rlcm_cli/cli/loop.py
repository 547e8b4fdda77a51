"""`rlcm loop`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import Asked, parse_rewards, resolve_run, settle_sources
from rlcm_cli.cli.headline import describe_dropped, describe_goal, describe_sampling
from rlcm_cli.cli.location import Location, open_location
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce
from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import command

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
    "sample.steps", "seed",
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
    from rlcm_cli.runs.staging import stage_loop

    flags = {**chosen_settings(context), "rewards": parse_rewards(rewards)}
    asked = Asked(tasks, config_file, assignments, flags, start)
    with open_location(root, stage_loop, publishes=not dry_run) as location:
        path, config = resolve_run(location.root, asked, loads_model=not dry_run and executor == "local")
        config.require_actions()

        from rlcm_cli.runs.run import Run, check_rewards, check_run
        from rlcm_cli.store.layout import RunLayout

        if dry_run:
            check_rewards(Run(RunLayout(path), config))
            print_config(config, as_json=as_json)
            return
        announce(config.model.name, quiet=quiet, as_json=as_json)

        from rlcm_cli.cli.consent import Given, named_texts, permit
        from rlcm_cli.cli.display import Display
        from rlcm_cli.cli.tracking import open_trackers
        from rlcm_cli.processes.join import join_processes
        from rlcm_cli.store.score_cache import open_cache

        processes = join_processes(config.runtime.device)
        run = check_run(path, config)
        settle_sources(run, asked)
        named = named_texts(assignments, flags["rewards"], flags["monitor.rewards"], flags["ray.address"])
        given = Given(named, allow_code, allow_hosts)
        trusted = permit(run, given, ray=executor == "ray", of_a_run=asked.copies_run)
        trackers = open_trackers(run) if processes.leads else None
        display = Display(
            quiet=quiet, as_json=as_json, iterations=config.runtime.iterations, silent=not processes.leads
        )
        display.say_all(trusted)
        with open_cache(wanted=not no_cache) as cache:
            if executor == "ray":
                check_shared(location, processes, config)
                from rlcm_cli.ray.loop import start_on_ray

                started = start_on_ray(run, cached=not no_cache, allow_changed=allow_changed)
            else:
                from rlcm_cli.cli.memory import fit_memory
                from rlcm_cli.phases.loop import start_loop

                fit = fit_memory(display, "sample", "train")
                started = start_loop(path, config, processes, cache=cache, allow_changed=allow_changed, fit=fit)
            location.confirm(config)
            display.say_all(describe_start(started, location.describe(path), names_rewards=bool(rewards)))
            follow_loop(started, location, display, processes, trackers)
        processes.leave()
        if processes.leads:
            show_result(started.run, location, display)


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


def show_result(run: Run, location: Location, display: Display) -> None:
    """Draw a finished run's curves and its images before and after, and print what to do next."""
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
    display.finish(
        {
            "run": location.describe(layout.root),
            "checkpoint": layout.checkpoints()[-1],
            "picture": picture and location.describe(picture),
        }
    )


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
