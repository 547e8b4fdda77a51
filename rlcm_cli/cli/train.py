"""`rlcm train`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcm_cli.cli import options as o


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("train", epilog="Example: rlcm train --run runs/a --device cuda")(run)


def run(
    root: o.ExistingRunOption,
    device: o.DeviceOption = None,
    micro_batch: Annotated[
        int | None, o.setting("--micro-batch", "N", "Transitions in a forward and backward pass.")
    ] = None,
    off_policy: Annotated[
        bool, typer.Option("--off-policy", help="Train on rollouts that another policy drew.")
    ] = False,
    allow_code: o.AllowCodeOption = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Update the policy on the scored rollout of the newest checkpoint, and publish the next checkpoint."""
    from rlcm_cli.cli.display import Display
    from rlcm_cli.phases.policy import load_policy_model
    from rlcm_cli.phases.score import load_scorers
    from rlcm_cli.phases.train import train

    the_run = o.reopen_run(root, flags={"runtime.device": device, "runtime.micro_batch_size": micro_batch})
    scorers = None
    if the_run.config.last_step.mode == "backprop":
        o.permit_code(the_run, (), allowed=allow_code)
        scorers = load_scorers(the_run)
    display = Display(quiet=quiet, as_json=as_json)
    display.follow(train(the_run, load_policy_model(the_run.config), scorers, off_policy=off_policy))
    checkpoint = the_run.layout.checkpoints()[-1]
    display.say(
        f"{the_run.layout.checkpoint(checkpoint)}: trained; next: rlcm sample --run {root}, or rlcm generate "
        f"--lora {root} --prompt cat"
    )
    display.finish({"run": str(root), "checkpoint": checkpoint})
