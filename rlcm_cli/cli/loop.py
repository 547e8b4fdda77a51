"""`rlcm loop`."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcm_cli.cli import options as o

PAPERS_MODELS = {"emoji-lcm": "SimianLuo/LCM_Dreamshaper_v7", "emoji-diffusion": "CompVis/stable-diffusion-v1-4"}
"""What each embedded model stands for."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("loop", epilog="Example: rlcm loop --task compression --iterations 40 --seed 1")(run)


def run(
    tasks: o.TaskOption = [],  # noqa: B006
    root: o.RunOption = None,
    config_file: o.ConfigOption = None,
    assignments: o.SetOption = [],  # noqa: B006
    rewards: o.RewardOption = [],  # noqa: B006
    watch: o.WatchOption = [],  # noqa: B006
    on_hacking: Annotated[
        str | None,
        o.setting("--on-hacking", "warn|stop", "When a watched reward falls as the trained one rises.", "warn"),
    ] = None,
    model: o.ModelOption = None,
    policy: o.PolicyOption = None,
    objective: o.ObjectiveOption = None,
    trained: o.TrainOption = None,
    last_step: o.LastStepOption = None,
    iterations: Annotated[int | None, o.setting("--iterations", "N", "Sample-score-train cycles in all.")] = None,
    samples: o.SamplesOption = None,
    steps: o.StepsOption = None,
    seed: o.SeedOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    start: o.FromOption = None,
    kl: Annotated[float | None, o.setting("--kl", "X", "Weight of the KL to the base model.")] = None,
    keep_rollouts: Annotated[int | None, o.setting("--keep-rollouts", "N", "Newest rollouts to keep.", "all")] = None,
    keep_checkpoints: Annotated[
        int | None, o.setting("--keep-checkpoints", "N", "Newest checkpoints to keep.", "all")
    ] = None,
    allow_code: o.AllowCodeOption = False,
    no_cache: o.NoCacheOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved configuration and leave.", rich_help_panel=o.OUTPUT),
    ] = False,
    quiet: o.QuietOption = False,
    as_json: o.JsonOption = False,
) -> None:
    """Fine-tune for a reward: sample, score and train, again and again.

    The same command goes on where a run was stopped; a larger --iterations extends a finished one. Between
    calls, only the settings of the table "runtime" may change: iterations, device, micro_batch_size, keep_*,
    and those of the table "watch".
    """
    path, config = o.resolve_run(
        root,
        tasks=tasks,
        config_file=config_file,
        assignments=assignments,
        start=start,
        flags={
            "rewards": o.parse_rewards(rewards),
            "watch.rewards": list(dict.fromkeys(watch)) or None,
            "watch.on_hacking": on_hacking,
            "model.name": model,
            "model.policy": policy,
            "train.objective": objective,
            "train.parameters": trained,
            "last_step.mode": last_step,
            "runtime.iterations": iterations,
            "sample.samples": samples,
            "sample.steps": steps,
            "seed": seed,
            "runtime.device": device,
            "model.dtype": dtype,
            "train.kl_weight": kl,
            "runtime.keep_rollouts": keep_rollouts,
            "runtime.keep_checkpoints": keep_checkpoints,
        },
    )
    config.require_actions()

    from rlcm_cli.phases.run import Run, check_rewards, check_run
    from rlcm_cli.store.layout import RunLayout

    if dry_run:
        check_rewards(Run(RunLayout(path), config))
        typer.echo(config.to_json())
        return

    from rlcm_cli.cli.display import Display
    from rlcm_cli.phases.loop import loop
    from rlcm_cli.phases.policy import start_run
    from rlcm_cli.phases.score import load_scorers
    from rlcm_cli.report.curves import write_curves
    from rlcm_cli.report.pairs import write_pairs

    checked = check_run(path, config)
    o.permit_code(checked, {*(o.parse_rewards(rewards) or ()), *watch}, allowed=allow_code)
    with o.open_cache(no_cache) as cache:
        scorers = load_scorers(checked, cache=cache)
        the_run, loaded = start_run(path, config)
        display = Display(quiet=quiet, as_json=as_json, iterations=config.runtime.iterations)
        display.say(f"run {path}: task {config.task}, model {config.model.name}, seed {config.seed}")
        display.say(device_line(config.model.name, str(loaded.device)))
        done, wanted = (the_run.layout.checkpoints() or [0])[-1], config.runtime.iterations
        if done >= wanted:
            display.say(
                f"nothing left to train: {done} iterations are done; extend the run with --iterations {2 * done}"
            )
        elif done:
            display.say(f"going on after iteration {done}")
        display.follow(loop(the_run, loaded, scorers))
    picture = write_pairs(the_run.layout)
    curves = write_curves(the_run.layout)
    if curves:
        display.say(f"{curves}: the rewards over the iterations")
    if picture:
        display.say(f"{picture}: the same held-out seeds before (left) and after (right)")
    display.say(f"draw with it: rlcm generate --lora {path} --prompt cat --count 8 --steps {config.sample.steps}")
    display.finish(
        {"run": str(path), "checkpoint": the_run.layout.checkpoints()[-1], "picture": picture and str(picture)}
    )


def device_line(model: str, device: str) -> str:
    """Say where the work is done, and where a GPU lies idle under a laptop's model."""
    if device != "cpu" and model in PAPERS_MODELS:
        return (
            f"device {device}: a GPU is here; the papers' model is --model {PAPERS_MODELS[model]}, "
            f"{model} is for trying things out"
        )
    return f"device {device}"
