"""`rlcm prune`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.completion import complete_run
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.streams import say
from rlcm_cli.errors import ConfigError
from rlcm_cli.wording import format_size

if TYPE_CHECKING:
    from rlcm_cli.runs.pruning import Pruning
    from rlcm_cli.store.remote.remote_run import RemoteRun


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("prune", epilog="Example: rlcm prune runs/compression --keep-rollouts 0")(prune_command)


def prune_command(
    named: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run directory, or its URL.", show_default=False, autocompletion=complete_run
        ),
    ],
    keep_rollouts: Annotated[
        int, typer.Option("--keep-rollouts", metavar="N", min=0, help="Number of newest rollouts to keep.")
    ] = 1,
    keep_checkpoints: Annotated[
        int,
        typer.Option(
            "--keep-checkpoints",
            metavar="N",
            min=1,
            help="Number of newest checkpoints to keep, besides the first and the best.",
        ),
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and exit.")] = False,
    as_json: o.JsonOption = False,
) -> None:
    """Remove old rollouts and checkpoints of a run, after saying which.

    Metrics, rewards and evaluations stay, so reports and comparisons stay; the run can still be resumed.

    Without its images, a rollout cannot be scored with another reward.
    """
    from rlcm_cli.cli.display import print_json
    from rlcm_cli.runs.pruning import plan_pruning, plan_remote_pruning, prune, prune_remote, stage_pruning
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.runs.staging import stage_evaluations

    if yes and dry_run:
        raise ConfigError("--yes removes and --dry-run does not; leave one out")
    remotes: list[RemoteRun] = []

    def fetch(remote: RemoteRun) -> None:
        remotes.append(remote)
        stage_pruning(remote)
        stage_evaluations(remote)

    with open_location(named, fetch) as location:
        run = open_run(location.existing)
        plan = (
            plan_remote_pruning(remotes[0], run, keep_rollouts, keep_checkpoints)
            if remotes
            else plan_pruning(run, keep_rollouts, keep_checkpoints)
        )
        if not as_json:
            for line in describe_plan(plan, named):
                say(line)
        removes = bool(plan.bytes) and not dry_run and (yes or confirm(plan, as_json=as_json))
        if removes and remotes:
            prune_remote(remotes[0], plan)
        elif removes:
            prune(run.layout, plan)
        if as_json:
            print_json({"run": named, **to_values(plan), "removed": removes})
        elif removes:
            say(f"removed {format_size(plan.bytes)}")
        elif plan.bytes:
            say("nothing was removed")


def describe_plan(plan: Pruning, named: str) -> Iterator[str]:
    """Describe what can be removed of a run, a line each."""
    from rlcm_cli.cli.display import describe_pruned

    if not plan.bytes:
        yield f"{named}: nothing to remove"
    if plan.rollouts:
        size = format_size(sum(plan.rollouts.values()))
        yield f"{named}: images and trajectories of {describe_pruned([*plan.rollouts], [])}, {size}"
    if plan.checkpoints:
        size = format_size(sum(plan.checkpoints.values()))
        yield f"{named}: {describe_pruned([], [*plan.checkpoints])}, {size}"
    for number, reason in plan.kept.items():
        yield f"{named}: keeps checkpoint {number}, {reason}"


def confirm(plan: Pruning, *, as_json: bool) -> bool:
    """Ask whether to remove. Raises `ConfigError` where nobody can be asked."""
    what = format_size(plan.bytes)
    if as_json or not sys.stdin.isatty():
        raise ConfigError(f"{what} would be removed for good, so this must be confirmed; add --yes, or --dry-run")
    return typer.confirm(f"Remove {what} for good?")


def to_values(plan: Pruning) -> dict[str, Any]:
    """Return what can be removed as plain values."""
    return {
        "rollouts": [*plan.rollouts],
        "checkpoints": [*plan.checkpoints],
        "kept": {str(number): reason for number, reason in plan.kept.items()},
        "bytes": plan.bytes,
    }
