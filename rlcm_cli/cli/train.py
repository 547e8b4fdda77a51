"""`rlcm train`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.location import open_location
from rlcm_cli.wording import command


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train", epilog="Example: rlcm train --run runs/a --device cuda")(train_command)


def train_command(
    named: o.ExistingRunOption,
    assignments: o.SetOption = [],  # noqa: B006
    device: o.DeviceOption = None,
    micro_batch: Annotated[
        int | None, o.setting("--micro-batch", "N", "Transitions in a forward and backward pass.")
    ] = None,
    memory_budget: o.MemoryBudgetOption = None,
    off_policy: Annotated[
        bool, typer.Option("--off-policy", help="Train on rollouts that another policy drew.")
    ] = False,
    log_with: o.LogWithOption = [],  # noqa: B006
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],  # noqa: B006
    allow_changed: o.AllowChangedOption = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Update the policy on the scored rollout of the newest checkpoint, and publish the next checkpoint."""
    o.announce(named, quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.consent import Given, named_texts, permit
    from rlcm_cli.cli.display import Display
    from rlcm_cli.cli.tracking import open_trackers, track
    from rlcm_cli.phases.score import load_scorers
    from rlcm_cli.phases.train import train
    from rlcm_cli.processes.join import check_team, join_team
    from rlcm_cli.runs.policy import load_policy_model
    from rlcm_cli.runs.staging import stage_training

    with open_location(named, stage_training, publishes=True) as location:
        run = o.reopen_run(
            location.existing,
            assignments=assignments,
            flags={
                "runtime.device": device,
                "runtime.micro_batch_size": micro_batch,
                "runtime.memory_budget": memory_budget,
                "runtime.log_with": log_with or None,
            },
        )
        team = join_team(run.config.runtime.device)
        trackers = open_trackers(run) if team.leads else None
        scorers, trusted = None, []
        if run.config.last_step.mode == "backprop":
            trusted = permit(run, Given(named_texts(assignments), allow_code, allow_hosts))
            scorers = load_scorers(run, allow_changed=allow_changed)
        display = Display(quiet=quiet, as_json=as_json, silent=not team.leads)
        display.say_all(trusted)
        display.follow(check_team(team, team.size))  # all train, however few shards there are
        model = load_policy_model(run.config)
        run = o.fit_memory(display, "train")(run, model)
        trained = train(run, model, scorers, team, off_policy=off_policy)
        display.follow(location.follow(track(trained, trackers)))
        team.leave()
        checkpoint = run.layout.checkpoints()[-1]
        display.say(
            f"{location.tell(run.layout.checkpoint(checkpoint))}: trained; next: "
            f"{command('sample', '--run', named)}, or {command('generate', '--lora', named, '--prompt', 'cat')}"
        )
        display.finish({"run": named, "checkpoint": checkpoint})
