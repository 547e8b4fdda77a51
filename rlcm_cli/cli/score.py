"""`rlcm score`."""

from __future__ import annotations

import typer

from rlcm_cli.cli import options as o


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("score", epilog="Example: rlcm score --run runs/a")(run)


def run(
    root: o.ExistingRunOption,
    worker: o.WorkerOption = None,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Give the sampled images their rewards, in sidecar files; needs neither the model nor a GPU."""
    from rlcm_cli.cli.display import Display
    from rlcm_cli.phases.run import open_run, parse_worker
    from rlcm_cli.phases.score import load_rewards, score

    share = parse_worker(worker)
    display = Display(quiet=quiet, as_json=as_json)
    the_run = open_run(root)
    display.follow(score(the_run, load_rewards(the_run), share))
    display.say(f"{root}: scored; next: rlcm train --run {root}")
    display.finish({"run": str(root)})
