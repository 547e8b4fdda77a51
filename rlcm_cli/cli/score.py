"""`rlcm score`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from rlcm_cli.cli import options as o
from rlcm_cli.cli.asked import reopen_run
from rlcm_cli.cli.completion import complete_reward
from rlcm_cli.cli.location import open_location
from rlcm_cli.cli.setting_options import chosen_settings, command_with
from rlcm_cli.cli.shares import follow_scoring
from rlcm_cli.cli.streams import announce
from rlcm_cli.wording import command


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "score", cls=command_with("runtime.device"), epilog="Example: rlcm score --run runs/a --reward sharpness"
    )(score_command)


def score_command(
    context: typer.Context,
    named: o.ExistingRunOption,
    rewards: Annotated[
        list[str],
        typer.Option(
            "--reward",
            metavar="NAME",
            help="Score every stored rollout with this reward, whatever the run trains for; repeatable.",
            show_default="the run's own, on rollouts not trained on yet",
            autocompletion=complete_reward,
        ),
    ] = [],
    iterations: Annotated[
        list[int],
        typer.Option(
            "--rollout",
            metavar="N",
            help="Number of a rollout to score (its folder's name); repeatable.",
            show_default=False,
        ),
    ] = [],
    assignments: o.SetOfRunOption = [],
    worker: o.WorkerOption = None,
    allow_code: o.AllowCodeOption = False,
    allow_hosts: o.AllowHostOption = [],
    allow_changed: o.AllowChangedOption = False,
    no_cache: o.NoCacheOption = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Score the sampled images and store the rewards next to them; needs no model."""
    announce(f"the rewards of {named}", quiet=quiet, as_json=as_json)

    from rlcm_cli.cli.consent import Given, named_texts, permit
    from rlcm_cli.cli.display import Display
    from rlcm_cli.core.device import select_device
    from rlcm_cli.phases.score import choose_iterations, load_scorers, score
    from rlcm_cli.processes.join import check_shares, join_processes
    from rlcm_cli.processes.worker import parse_worker
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.runs.staging import stage_scoring
    from rlcm_cli.store.score_cache import open_cache

    share = parse_worker(worker)
    fetch = partial(stage_scoring, worker=share, iterations=iterations, everything=bool(rewards))
    with open_location(named, fetch, publishes=True) as location:
        root = location.existing
        config = open_run(root).config
        known = config.reward_names()
        monitored = [*config.monitor.rewards, *(name for name in rewards if name not in known)]
        # Rewards that the command line names become the run's, to have its settings.
        run = reopen_run(
            root, assignments=assignments, flags={**chosen_settings(context), "monitor.rewards": monitored}
        )
        given = Given(named_texts(assignments, rewards), allow_code, allow_hosts)
        trusted = permit(run, given, rewards=rewards or known)
        chosen = choose_iterations(run, iterations, everything=bool(rewards), worker=share)
        processes = join_processes(run.config.runtime.device)
        display = Display(quiet=quiet, as_json=as_json, silent=not processes.leads)
        display.say_all(trusted)
        display.follow(check_shares(processes, run.config.sample.shards))
        device = select_device(run.config.runtime.device)
        with open_cache(wanted=not no_cache) as cache:
            scorers = load_scorers(run, rewards or known, cache, allow_changed=allow_changed)
            events = score(run, scorers, processes.divide(share), iterations=chosen, device=device)
            display.follow(location.follow(events))
        processes.wait()
        processes.leave()
        folders = [scorer.spec.directory for scorer in scorers.values()]
        progress = follow_scoring(run, share, chosen, folders)
        if not progress.complete:
            again = command("score", "--run", named, *(word for name in rewards for word in ("--reward", name)))
            display.say(f"{named}: {progress.describe('scored')}; once all are sampled: {again}")
        elif rewards:
            look = command("inspect", named, "--images", "DIR")
            display.say(f"{named}: scored with {', '.join(scorers)}; to see the images: {look}")
        else:
            display.say(f"{named}: scored; next: {command('train', '--run', named)}")
        display.finish({"run": named, **progress.to_json()})
