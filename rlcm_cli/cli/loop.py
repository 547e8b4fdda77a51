"""`rlcm loop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.headline import describe_dropped, describe_goal
from rlcm_cli.cli.location import Location, open_location
from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from rlcm_cli.processes.team import Team

PAPERS_MODELS = {"emoji-lcm": "SimianLuo/LCM_Dreamshaper_v7", "emoji-diffusion": "CompVis/stable-diffusion-v1-4"}
"""What each embedded model stands for."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("loop", epilog="Example: rlcm loop --task compression --iterations 40 --seed 1")(loop_command)


def loop_command(
    tasks: o.TaskOption = [],  # noqa: B006
    root: o.RunOption = None,
    config_file: o.ConfigOption = None,
    assignments: o.SetOption = [],  # noqa: B006
    prompts: o.PromptsOption = None,
    rewards: o.RewardOption = [],  # noqa: B006
    watch: o.WatchOption = [],  # noqa: B006
    on_hacking: Annotated[
        str | None,
        o.setting("--on-hacking", "warn|stop", "When a watched reward falls as the trained one rises.", "warn"),
    ] = None,
    model: o.ModelOption = None,
    sampler: o.SamplerOption = None,
    objective: o.ObjectiveOption = None,
    trained: o.TrainOption = None,
    last_step: o.LastStepOption = None,
    iterations: Annotated[int | None, o.setting("--iterations", "N", "Sample-score-train cycles in all.")] = None,
    samples: o.SamplesOption = None,
    steps: o.StepsOption = None,
    seed: o.SeedOption = None,
    device: o.DeviceOption = None,
    memory_budget: o.MemoryBudgetOption = None,
    dtype: o.DtypeOption = None,
    size: o.SizeOption = None,
    start: o.FromOption = None,
    kl: Annotated[float | None, o.setting("--kl", "X", "Weight of the KL to the base model.")] = None,
    keep_rollouts: Annotated[int | None, o.setting("--keep-rollouts", "N", "Newest rollouts to keep.", "all")] = None,
    keep_checkpoints: Annotated[
        int | None, o.setting("--keep-checkpoints", "N", "Newest checkpoints to keep.", "all")
    ] = None,
    log_with: o.LogWithOption = [],  # noqa: B006
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option("--executor", help="Who does the work: this machine, or the nodes of a Ray cluster."),
    ] = "local",
    ray_address: Annotated[
        str | None,
        o.setting("--ray-address", "ADDRESS", "HOST:PORT of a Ray cluster, or auto.", "one of this machine's own"),
    ] = None,
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],  # noqa: B006
    allow_changed: o.AllowChangedOption = False,
    no_cache: o.NoCacheOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved configuration as TOML, which --config takes, and exit.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Fine-tune for a reward: sample, score and train, again and again.

    The same command resumes a run that was stopped; a larger --iterations extends a finished one.

    Between calls only the settings of the tables runtime, watch and ray may change, and evaluate.every.
    """
    from rlcm_cli.runs.staging import stage_loop

    with open_location(root, stage_loop, publishes=not dry_run) as location:
        path, config = o.resolve_run(
            location.root,
            tasks=tasks,
            config_file=config_file,
            assignments=assignments,
            start=start,
            flags={
                "prompts.source": prompts,
                "rewards": o.parse_rewards(rewards),
                "watch.rewards": list(dict.fromkeys(watch)) or None,
                "watch.on_hacking": on_hacking,
                "model.name": model,
                "sampler.kind": sampler,
                "objective.kind": objective,
                "train.parameters": trained,
                "last_step.mode": last_step,
                "runtime.iterations": iterations,
                "sample.samples": samples,
                "sample.steps": steps,
                "seed": seed,
                "runtime.device": device,
                "runtime.memory_budget": memory_budget,
                "model.dtype": dtype,
                "model.image_size": size,
                "train.kl_weight": kl,
                "runtime.keep_rollouts": keep_rollouts,
                "runtime.keep_checkpoints": keep_checkpoints,
                "runtime.log_with": log_with or None,
                "ray.address": ray_address,
            },
            loads_model=not dry_run and executor == "local",
        )
        config.require_actions()

        from rlcm_cli.runs.run import Run, check_rewards, check_run
        from rlcm_cli.store.layout import RunLayout

        if dry_run:
            check_rewards(Run(RunLayout(path), config))
            o.print_config(config, as_json=as_json)
            return

        from rlcm_cli.cli.consent import Given, named_texts, permit

        o.announce(config.model.name, quiet=quiet, as_json=as_json)

        from rlcm_cli.cli.display import Display
        from rlcm_cli.cli.live import look_at
        from rlcm_cli.cli.tracking import open_trackers, track
        from rlcm_cli.phases.loop import loop
        from rlcm_cli.phases.score import load_scorers
        from rlcm_cli.processes.join import check_team, join_team
        from rlcm_cli.report.run.before_after import write_pairs
        from rlcm_cli.report.run.curves import write_curves
        from rlcm_cli.runs.hacking import advise_checkpoint
        from rlcm_cli.runs.policy import start_run
        from rlcm_cli.store.run import read_metrics

        team = join_team(config.runtime.device)
        checked = check_run(path, config)
        o.settle_sources(checked, tasks=tasks, config_file=config_file, assignments=assignments, prompts=prompts)
        named = named_texts(assignments, o.parse_rewards(rewards), watch, ray_address)
        trusted = permit(
            checked,
            Given(named, allow_code, allow_hosts),
            ray=executor == "ray",
            of_a_run=config_file is not None and config_file.suffix != ".toml",
        )
        trackers = open_trackers(checked) if team.leads else None
        with o.open_cache(no_cache) as cache:
            display = Display(
                quiet=quiet, as_json=as_json, iterations=config.runtime.iterations, silent=not team.leads
            )
            display.say_all(trusted)
            if executor == "ray":
                from rlcm_cli.ray.loop import loop_on_ray

                check_shared(location, team)
                run, device_found = checked, f"those of the Ray cluster {config.ray.address or 'of this machine'}"
                events = loop_on_ray(run, cached=not no_cache, allow_changed=allow_changed)
            else:
                scorers = load_scorers(checked, cache=cache, allow_changed=allow_changed)
                run, loaded = start_run(path, config, o.fit_memory(display, "sample", "train"))
                device_found = str(loaded.device)
                events = loop(run, loaded, scorers, team)
            location.confirm(config)
            display.say(
                f"run {location.tell(path)}: task {config.task}, model {config.model.name}, seed {config.seed}"
            )
            display.say(describe_goal(config))
            dropped = describe_dropped(config) if rewards else None
            if dropped:
                display.say(dropped)
            display.say(device_line(config.model.name, device_found))
            display.follow(check_team(team, config.sample.shards))
            done, wanted = (run.layout.checkpoints() or [0])[-1], config.runtime.iterations
            if done >= wanted:
                display.say(
                    f"nothing left to train: {done} iterations are done; extend the run with --iterations {2 * done}"
                )
            elif done:
                display.say(f"going on after iteration {done}")
            display.follow(
                location.follow(track(events, trackers), loop=run if team.leads else None),
                look_at(run.layout, config, location.tell(path)),
            )
        team.leave()
        if not team.leads:
            return
        picture = write_pairs(run.layout)
        curves = write_curves(run.layout, run.reward_bounds())
        if curves:
            display.say(f"{location.tell(curves)}: the rewards over the iterations")
        if picture:
            display.say(f"{location.tell(picture)}: the same held-out seeds before (left) and after (right)")
        steps = config.sample.steps
        advised = advise_checkpoint(read_metrics(run.layout), config)
        drawing = ["--prompt", "cat", "--count", 8, "--steps", steps]
        if advised and advised[0] in run.layout.checkpoints():
            best, name = advised
            lora = location.tell(run.layout.checkpoint(best))
            display.say(
                f"the newest checkpoint is hacked; draw with {best}, the best by '{name}': "
                f"{command('generate', '--lora', lora, *drawing)}"
            )
        else:
            display.say(f"draw with it: {command('generate', '--lora', location.tell(path), *drawing)}")
        display.finish(
            {
                "run": location.tell(path),
                "checkpoint": run.layout.checkpoints()[-1],
                "picture": picture and location.tell(picture),
            }
        )


def device_line(model: str, device: str) -> str:
    """Say where the work is done, and where a GPU lies idle under a laptop's model."""
    if device.startswith(("cuda", "mps")) and model in PAPERS_MODELS:
        return (
            f"device {device}: a GPU is here; the papers' model is --model {PAPERS_MODELS[model]}, "
            f"{model} is for trying things out"
        )
    return f"device {device}"


def check_shared(location: Location, team: Team) -> None:
    """Raise `ConfigError` where the nodes of a Ray cluster could not see the run, or others do the work already."""
    if location.url is not None:
        raise ConfigError(
            f"--executor ray: all nodes must see the run directory under the same path, and {location.url} is a URL; "
            "name a shared folder, or run `rlcm sample`, `score` and `train` on the machines in turn"
        )
    if team.size > 1:
        raise ConfigError(
            "--executor ray: Ray divides the work itself, but torchrun or accelerate started several processes; start "
            "`rlcm loop` without a launcher"
        )
