"""`rlcm sample`."""

from __future__ import annotations

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.headline import describe_dropped, describe_goal
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.shares import follow_sampling
from rlcm_cli.wording import command


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("sample", epilog="Example: rlcm sample --task compression --run runs/a --worker 0/4")(sample_command)


def sample_command(
    tasks: o.TaskOption = [],  # noqa: B006
    root: o.RunOption = None,
    config_file: o.ConfigOption = None,
    assignments: o.SetOption = [],  # noqa: B006
    prompts: o.PromptsOption = None,
    rewards: o.RewardOption = [],  # noqa: B006
    model: o.ModelOption = None,
    sampler: o.SamplerOption = None,
    objective: o.ObjectiveOption = None,
    trained: o.TrainOption = None,
    last_step: o.LastStepOption = None,
    samples: o.SamplesOption = None,
    steps: o.StepsOption = None,
    seed: o.SeedOption = None,
    device: o.DeviceOption = None,
    memory_budget: o.MemoryBudgetOption = None,
    dtype: o.DtypeOption = None,
    size: o.SizeOption = None,
    start: o.FromOption = None,
    worker: o.WorkerOption = None,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Draw the next iteration's images with the newest policy; start the run where there is none."""
    from rlcm_cli.runs.staging import stage_sampling

    with open_location(root, stage_sampling, publishes=True) as location:
        path, config = o.resolve_run(
            location.root,
            tasks=tasks,
            config_file=config_file,
            assignments=assignments,
            start=start,
            flags={
                "prompts.source": prompts,
                "rewards": o.parse_rewards(rewards),
                "model.name": model,
                "sampler.kind": sampler,
                "objective.kind": objective,
                "train.parameters": trained,
                "last_step.mode": last_step,
                "sample.samples": samples,
                "sample.steps": steps,
                "seed": seed,
                "runtime.device": device,
                "runtime.memory_budget": memory_budget,
                "model.dtype": dtype,
                "model.image_size": size,
            },
        )
        config.require_actions()
        o.announce(config.model.name, quiet=quiet, as_json=as_json)

        from rlcm_cli.cli.display import Display
        from rlcm_cli.phases.sample import sample, tell_cut_prompts
        from rlcm_cli.processes.join import check_team, join_team
        from rlcm_cli.processes.worker import parse_worker
        from rlcm_cli.runs.policy import start_run
        from rlcm_cli.runs.run import check_run

        share = parse_worker(worker)
        team = join_team(config.runtime.device)
        display = Display(quiet=quiet, as_json=as_json, silent=not team.leads)
        checked = check_run(path, config)
        o.settle_sources(checked, tasks=tasks, config_file=config_file, assignments=assignments, prompts=prompts)
        run, loaded = start_run(path, config, o.fit_memory(display, "sample"))
        location.confirm(config)
        display.say(describe_goal(config))
        dropped = describe_dropped(config) if rewards else None
        if dropped:
            display.say(dropped)
        display.follow(check_team(team, config.sample.shards))
        display.follow(tell_cut_prompts(loaded, run.all_prompts()))
        display.follow(location.follow(sample(run, loaded, team.divide(share))))
        team.wait()
        team.leave()
        iteration = run.layout.checkpoints()[-1]
        progress = follow_sampling(run, share, iteration)
        told, when = progress.describe("sampled"), "next" if progress.complete else "once all are there"
        display.say(
            f"{location.tell(run.layout.rollout(iteration))}: {told}; {when}: "
            f"{command('score', '--run', location.tell(path))}"
        )
        display.finish({"run": location.tell(path), "iteration": iteration + 1, **progress.to_json()})
