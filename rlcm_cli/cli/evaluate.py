"""`rlcm evaluate`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import reopen_run
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.streams import announce


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "evaluate",
        cls=command_with("runtime.device", "runtime.shard_weights"),
        epilog="Example: rlcm evaluate --run runs/a --checkpoint 0 --checkpoint 40",
    )(evaluate_command)


def evaluate_command(
    context: typer.Context,
    named: o.ExistingRunOption,
    checkpoints: Annotated[
        list[int],
        typer.Option(
            "--checkpoint", metavar="N", help="Checkpoint to evaluate; repeatable.", show_default="the newest"
        ),
    ] = [],
    assignments: o.SetOfRunOption = [],
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],
    allow_changed: o.AllowChangedOption = False,
    no_cache: o.NoCacheOption = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Generate and score the run's fixed held-out images with some of its checkpoints."""
    announce(named, quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.consent import Given, named_texts, permit
    from rlcm_cli.cli.display import Display
    from rlcm_cli.phases.evaluate import evaluate, plan_evaluation
    from rlcm_cli.phases.score import load_scorers
    from rlcm_cli.processes.join import check_shares, join_processes
    from rlcm_cli.runs.policy import load_policy_model
    from rlcm_cli.runs.staging import stage_evaluating
    from rlcm_cli.store.checkpoint import latest_checkpoint
    from rlcm_cli.store.score_cache import open_cache

    with open_location(named, partial(stage_evaluating, checkpoints=checkpoints), publishes=True) as location:
        run = reopen_run(location.existing, assignments=assignments, flags=chosen_settings(context))
        trusted = permit(run, Given(named_texts(assignments), allow_code, allow_hosts))
        chosen = checkpoints or [latest_checkpoint(run.layout)]
        processes = join_processes(run.config.runtime.device)
        display = Display(quiet=quiet, as_json=as_json, silent=not processes.leads)
        display.say_all(trusted)
        display.follow(
            check_shares(processes, processes.size)
        )  # all processes generate, even if there are fewer shards
        with open_cache(wanted=not no_cache) as cache:
            scorers = load_scorers(run, cache=cache, allow_changed=allow_changed)
            prompts = [planned.prompt for planned in plan_evaluation(run.config, run.prompts)]
            model = load_policy_model(run.config, prompts, processes)
            for checkpoint in chosen:
                display.follow(location.follow(evaluate(run, model, scorers, checkpoint, processes)))
        processes.leave()
        display.finish({"run": named})
