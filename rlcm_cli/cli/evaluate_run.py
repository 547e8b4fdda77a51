"""`rlcm evaluate` of a run's own held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rlcm_cli.cli.asked import reopen_run
from rlcm_cli.cli.location import open_location
from rlcm_cli.wording import command

if TYPE_CHECKING:
    from rlcm_cli.cli.display import Display
    from rlcm_cli.events import Event
    from rlcm_cli.phases.score import Scorer
    from rlcm_cli.processes.job import Processes
    from rlcm_cli.runs.run import Run


@dataclass(frozen=True)
class Manner:
    """How a command works, whatever it evaluates: its settings, what it may do, and what it prints."""

    assignments: Sequence[str] = ()
    """`KEY=VALUE` of each `--set`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key → value of an option; None means "not given"."""
    allow_code: bool = False
    allow_hosts: Sequence[str] = ()
    allow_changed: bool = False
    cache: bool = True
    quiet: bool = False
    as_json: bool = False


def evaluate_run(named: str, checkpoints: Sequence[str], rewards: Sequence[str], manner: Manner) -> None:
    """Draw and score the held-out images of checkpoints; with rewards, score what is stored."""
    from rlcm_cli.cli.consent import Given, named_texts, permit
    from rlcm_cli.cli.display import Display
    from rlcm_cli.core.device import select_device
    from rlcm_cli.phases.evaluate import score_evaluations
    from rlcm_cli.phases.score import load_scorers
    from rlcm_cli.processes.join import check_shares, join_processes
    from rlcm_cli.runs.run import open_run
    from rlcm_cli.runs.staging import stage_evaluating
    from rlcm_cli.store.score_cache import open_cache

    fetch = partial(stage_evaluating, checkpoints=checkpoints, later=bool(rewards))
    with open_location(named, fetch, publishes=True) as location:
        own = open_run(location.existing).config
        monitored = [*own.monitor.rewards, *(name for name in rewards if name not in own.reward_names())]
        # Rewards that the command line names become the run's, to have its settings.
        flags = {**manner.settings, **({"monitor.rewards": monitored} if rewards else {})}
        run = reopen_run(location.existing, assignments=manner.assignments, flags=flags)
        chosen, notes = choose_checkpoints(run, checkpoints, stored=bool(rewards))
        missing = [number for number in chosen if number not in run.layout.evaluations()]
        asked = list(dict.fromkeys([*(run.config.reward_names() if missing or not rewards else []), *rewards]))
        given = Given(named_texts(manner.assignments, rewards), manner.allow_code, manner.allow_hosts)
        trusted = permit(run, given, rewards=asked)
        processes = join_processes(run.config.runtime.device)
        display = Display(quiet=manner.quiet, as_json=manner.as_json, silent=not processes.leads)
        display.say_all([*trusted, *notes])
        # All processes generate, even if there are fewer shards.
        display.follow(check_shares(processes, processes.size))
        with open_cache(wanted=manner.cache) as cache:
            scorers = load_scorers(run, asked, cache=cache, allow_changed=manner.allow_changed)
            if missing:
                display.follow(location.follow(draw_missing(run, scorers, missing, processes)))
            stored = [number for number in chosen if number not in missing]
            if processes.leads and stored:
                later = {name: scorers[name] for name in rewards or asked}
                device = select_device(run.config.runtime.device)
                display.follow(location.follow(score_evaluations(run, later, stored, device)))
            processes.wait()
        processes.leave()
        judged = show_checkpoints(run, chosen, rewards, display)
        if rewards:
            display.say(f"next: {command('report', named)}, which shows them with the images")
        display.finish({"run": named, "checkpoints": chosen, **judged})


def choose_checkpoints(run: Run, texts: Sequence[str], *, stored: bool) -> tuple[list[int], list[str]]:
    """Choose the checkpoints that a command line names, and say which the best ones are.

    By default it is the newest or, where `stored` images are enough, each one that was evaluated. Raises as
    `choose_checkpoint`, and `MissingFileError` for one of which there are neither images nor weights.
    """
    from rlcm_cli.runs.choosing import choose_checkpoint, describe_better, require_checkpoint
    from rlcm_cli.store.checkpoint import latest_checkpoint

    layout, config = run.layout, run.config
    notes = []
    if texts:
        found = [choose_checkpoint(layout, config, text) for text in texts]
        notes = [f"{choice}" for choice in found if choice.why]
        chosen = [choice.number for choice in found]
    elif stored and layout.evaluations():
        chosen = layout.evaluations()
    else:
        chosen = [latest_checkpoint(layout)]
        better = describe_better(layout, config)
        notes = [better] if better else []
    for number in chosen:
        if number not in layout.evaluations():
            require_checkpoint(layout, number)
    return list(dict.fromkeys(chosen)), notes


def draw_missing(
    run: Run, scorers: Mapping[str, Scorer], checkpoints: Sequence[int], processes: Processes
) -> Iterator[Event]:
    """Draw and score the held-out images with checkpoints that lack them, with one model."""
    from rlcm_cli.phases.evaluate import evaluate, plan_evaluation
    from rlcm_cli.runs.policy import load_policy_model

    prompts = [planned.prompt for planned in plan_evaluation(run.config, run.prompts)]
    model = load_policy_model(run.config, prompts, processes)
    for checkpoint in checkpoints:
        yield from evaluate(run, model, scorers, checkpoint, processes)


def show_checkpoints(
    run: Run, checkpoints: Sequence[int], rewards: Sequence[str], display: Display
) -> Mapping[str, Any]:
    """Print how checkpoints compare by the rewards that were asked for, else by the run's own; return it."""
    from rlcm_cli.cli.judgements import show_judgements
    from rlcm_cli.judging.held_out import judge_checkpoints
    from rlcm_cli.judging.summary import to_json

    judged = judge_checkpoints(run.layout, checkpoints, rewards or run.config.reward_names())
    if rewards or len(checkpoints) > 1:
        show_judgements(judged.get("all", []), display, "checkpoint")
    return {"judged": {part: [to_json(found) for found in own] for part, own in judged.items()}}
