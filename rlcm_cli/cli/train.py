"""`rlcm train`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import reopen_run
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce
from rlcm_cli.wording import command

SETTINGS = (
    "runtime.device", "runtime.micro_batch_size", "runtime.offload", "runtime.memory_budget", "runtime.shard_weights",
    "runtime.log_with",
)  # fmt: skip
"""Settings that are options of the command."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train", cls=command_with(*SETTINGS), epilog="Example: rlcm train --run runs/a --device cuda")(
        train_command
    )


def train_command(
    context: typer.Context,
    named: o.ExistingRunOption,
    assignments: o.SetOfRunOption = [],
    off_policy: Annotated[
        bool, typer.Option("--off-policy", help="Train even if the rollouts come from another policy.")
    ] = False,
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],
    allow_changed: o.AllowChangedOption = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Update the policy on the scored rollout of the newest checkpoint, and publish the next checkpoint."""
    announce(named, quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.consent import Given, named_texts, permit
    from rlcm_cli.cli.display import Display
    from rlcm_cli.cli.memory import fit_memory
    from rlcm_cli.cli.tracking import open_trackers, track
    from rlcm_cli.phases.score import load_scorers
    from rlcm_cli.phases.train import train
    from rlcm_cli.processes.join import check_shares, join_processes
    from rlcm_cli.runs.policy import EMPTY_PROMPT, load_policy_model
    from rlcm_cli.runs.staging import stage_training

    with open_location(named, stage_training, publishes=True) as location:
        run = reopen_run(location.existing, assignments=assignments, flags=chosen_settings(context))
        processes = join_processes(run.config.runtime.device)
        trackers = open_trackers(run) if processes.leads else None
        scorers, trusted = None, []
        if run.config.last_step.mode == "backprop":
            trusted = permit(run, Given(named_texts(assignments), allow_code, allow_hosts))
            scorers = load_scorers(run, allow_changed=allow_changed)
        display = Display(quiet=quiet, as_json=as_json, silent=not processes.leads)
        display.say_all(trusted)
        display.follow(check_shares(processes, processes.size))  # all processes train, even if there are fewer shards
        # The shards have the prompts' embeddings; only a memory budget has something drawn, of no prompt.
        prompts = [EMPTY_PROMPT] if run.config.runtime.memory_budget else []
        model = load_policy_model(run.config, prompts, processes)
        run = fit_memory(display, "train")(run, model)
        trained = train(run, model, scorers, processes, off_policy=off_policy)
        display.follow(location.follow(track(trained, trackers)))
        processes.leave()
        checkpoint = run.layout.checkpoints()[-1]
        display.say(
            f"{location.describe(run.layout.checkpoint(checkpoint))}: trained; next: "
            f"{command('sample', '--run', named)}, or {command('generate', '--lora', named, '--prompt', 'cat')}"
        )
        display.finish({"run": named, "checkpoint": checkpoint})
