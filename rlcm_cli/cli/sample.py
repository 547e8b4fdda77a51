"""`rlcm sample`."""

from __future__ import annotations

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import Asked, parse_rewards, resolve_run, settle_sources
from rlcm_cli.cli.headline import describe_dropped, describe_goal, describe_sampling
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.shares import follow_sampling
from rlcm_cli.cli.streams import announce
from rlcm_cli.wording import command

SETTINGS = (
    "prompts.source", "model.name", "sampler.kind", "objective.kind", "train.parameters", "last_step.mode",
    "sample.samples", "sample.steps", "seed", "runtime.device", "runtime.offload", "runtime.memory_budget",
    "runtime.shard_weights", "model.dtype", "model.quantize", "model.tiled_decoding", "model.image_size",
)  # fmt: skip
"""Settings that are options of the command."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "sample",
        cls=command_with(*SETTINGS),
        epilog="Example: rlcm sample --task compression --run runs/a --worker 0/4",
    )(sample_command)


def sample_command(
    context: typer.Context,
    tasks: o.TaskOption = [],
    root: o.RunOption = None,
    config_file: o.ConfigOption = None,
    assignments: o.SetOption = [],
    rewards: o.RewardOption = [],
    start: o.FromOption = None,
    worker: o.WorkerOption = None,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Sample the next iteration's images with the newest policy; start the run if there is none."""
    from rlcm_cli.runs.staging import stage_sampling

    flags = {**chosen_settings(context), "rewards": parse_rewards(rewards)}
    asked = Asked(tasks, config_file, assignments, flags, start)
    with open_location(root, stage_sampling, publishes=True) as location:
        path, config = resolve_run(location.root, asked)
        config.require_actions()
        announce(config.model.name, quiet=quiet, as_json=as_json)

        from rlcm_cli.cli.display import Display
        from rlcm_cli.cli.memory import fit_memory
        from rlcm_cli.phases.sample import sample, tell_cut_prompts
        from rlcm_cli.processes.join import check_shares, join_processes
        from rlcm_cli.processes.worker import parse_worker
        from rlcm_cli.runs.policy import start_run
        from rlcm_cli.runs.run import check_run

        share = parse_worker(worker)
        processes = join_processes(config.runtime.device)
        display = Display(quiet=quiet, as_json=as_json, silent=not processes.leads)
        settle_sources(check_run(path, config), asked)
        run, model = start_run(path, config, fit_memory(display, "sample"), processes)
        location.confirm(config)
        display.say(describe_goal(config))
        display.say(describe_sampling(config, model))
        dropped = describe_dropped(config) if rewards else None
        if dropped:
            display.say(dropped)
        display.follow(check_shares(processes, config.sample.shards))
        display.follow(tell_cut_prompts(model, run.all_prompts()))
        display.follow(location.follow(sample(run, model, processes.divide(share))))
        processes.wait()
        processes.leave()
        iteration = run.layout.checkpoints()[-1]
        progress = follow_sampling(run, share, iteration)
        when = "next" if progress.complete else "once all are sampled"
        display.say(
            f"{location.describe(run.layout.rollout(iteration))}: {progress.describe('sampled')}; {when}: "
            f"{command('score', '--run', location.describe(path))}"
        )
        display.finish({"run": location.describe(path), "iteration": iteration + 1, **progress.to_json()})
