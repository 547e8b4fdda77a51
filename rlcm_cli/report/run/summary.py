"""What a run came to, in numbers and words: the change on fixed images with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile

import numpy as np

from rlcm_cli.core.estimates import Estimate
from rlcm_cli.core.hacking import measure_drop
from rlcm_cli.report.compare.runs import describe_weights
from rlcm_cli.report.private import name_reward, withhold_text
from rlcm_cli.report.run.data import RunData
from rlcm_cli.report.run.goals import find_goals
from rlcm_cli.runs.held_out import estimate_images, find_span
from rlcm_cli.store.metrics import PHASES
from rlcm_cli.wording import count, format_duration

CLEAR = 2.0
"""Standard errors by which a mean has to change before it is said to have changed."""


@dataclass(frozen=True)
class Change:
    """How a reward changed between two evaluations, on the same prompts and seeds."""

    reward: str
    held_out: bool
    """On prompts that are kept out of training; else on training prompts with held-out seeds."""
    before: Estimate
    after: Estimate
    difference: Estimate
    """Of the pairs, whose error is smaller than that of two independent means."""
    is_sum: bool = False
    """Of the weighted sum of several rewards that is trained for; `reward` says which."""

    @property
    def name(self) -> str:
        """What changed, as shown."""
        return self.reward if self.is_sum else name_reward(self.reward)

    def verdict(self) -> str:
        """Return in a word what became of the mean."""
        if not math.isfinite(self.difference.error):
            return "unclear"
        if abs(self.difference.mean) <= CLEAR * self.difference.error or not self.difference.mean:
            return "no clear change"
        return "rose" if self.difference.mean > 0 else "fell"


def find_changes(data: RunData) -> list[Change]:
    """Compare the first and the last evaluation: what is trained for, where that is a sum, then reward by reward.

    None where there are not two of the same images.
    """
    span = find_span(data.evaluations, data.config)
    if span is None:
        return []
    first, last = span.first, span.final
    goals = [(goal.name, goal.values(first), goal.values(last)) for goal in find_goals(data)]
    single = [
        (reward, first.rewards[reward].astype(np.float64), last.rewards[reward].astype(np.float64))
        for reward in data.rewards()
        if reward in first.rewards and reward in last.rewards
    ]
    changes = []
    for number, (reward, then, now) in enumerate([*goals, *single]):
        for held_out in (False, True):
            before, after, moved = (
                estimate_images(first, values, first.held_out == held_out) for values in (then, now, now - then)
            )
            if before and after and moved:
                changes.append(Change(reward, held_out, before, after, moved, is_sum=number < len(goals)))
    return changes


def format_number(value: float) -> str:
    """Return a number as text with four significant digits."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def format_estimate(found: Estimate) -> str:
    """Return mean ± standard error, with the decimals that the error resolves."""
    error = "" if not math.isfinite(found.error) else f"\u00a0±\u00a0{format_resolved(found.error, found.error)}"
    return format_resolved(found.mean, found.error) + error


def format_resolved(value: float, error: float) -> str:
    """Return a number with the decimals that a standard error resolves: two digits of the error."""
    if not (math.isfinite(error) and error):
        return format_number(value)
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:z,.{places}f}".replace("-", "−")


def describe_training_goal(data: RunData) -> str:
    """Describe what a run is trained for."""
    goals = {task: describe_weights(weights) for task, weights in data.run.tasks.items()}
    return next(iter(goals.values())) if len(goals) == 1 else "; ".join(f"{task}: {goals[task]}" for task in goals)


def describe_training(data: RunData) -> str:
    """Describe in a sentence what was trained, on what and how."""
    config = data.config
    what = "All weights of the denoiser" if config.train.parameters == "full" else f"A LoRA of rank {config.lora.rank}"
    sources = [task.prompts.source for task in config.joint_tasks().values()]
    return (
        f"{what} of {withhold_text(config.model.name)}, trained by {config.objective.kind.upper()} for "
        f"{describe_training_goal(data)}, on the prompts of {', '.join(map(withhold_text, sources))}: "
        f"{count(len(data.metrics), 'iteration')} of {count(config.sample.samples, 'image')}, "
        f"{count(config.sample.steps, 'model call')} per image, seed {config.seed}."
    )


def describe_cost(data: RunData) -> str:
    """Describe in a sentence how much was drawn and how long it took."""
    metrics = data.metrics
    seconds = {phase: sum(row.seconds(phase) or 0 for row in metrics) for phase in PHASES}
    known = ", ".join(f"{phase} {format_duration(value)}" for phase, value in seconds.items() if value)
    text = f"{count(count_images(data), 'image')} drawn and scored"
    if known:
        text += f" in {format_duration(sum(seconds.values()))} of work ({known})"
    if metrics and metrics[-1].finished_at:
        text += f"; last iteration on {datetime.fromtimestamp(metrics[-1].finished_at, UTC):%d %B %Y, %H:%M} UTC"
    return f"{text}."


def count_images(data: RunData) -> int:
    """Count the images that a run was trained on."""
    return sum(row.samples or 0 for row in data.metrics)


def describe_change(change: Change) -> str:
    """Describe in a sentence how a reward changed on fixed images."""
    prompts = change.difference.prompts
    where = (
        f"{count(prompts, 'prompt')} kept out of training"
        if change.held_out
        else f"{count(prompts, 'training prompt')} with held-out seeds"
    )
    verdict = {"no clear change": "did not change clearly", "unclear": "went"}.get(change.verdict(), change.verdict())
    difference = format_estimate(change.difference)
    return f"On {where}, {change.name} {verdict}: {describe_before_after(change)}, a change of {difference}."


def describe_best(data: RunData) -> list[str]:
    """Say in a sentence which of three or more evaluated checkpoints is the best; an alarm names another."""
    span = find_span(data.evaluations, data.config)
    if span is None or span.best is None or len(data.evaluations) < 3 or data.alarms:
        return []
    number = span.best.checkpoint
    last = " and the last" if number == span.final.checkpoint else ""
    return [
        f"Of {count(len(data.evaluations), 'evaluated checkpoint')}, {number} is the best{last} by what is "
        "trained for, on all held-out images."
    ]


def describe_before_after(change: Change) -> str:
    """Return the means before and after, with the decimals of the change."""
    before, after = (format_resolved(part.mean, change.difference.error) for part in (change.before, change.after))
    return f"{before} → {after}"


def describe_drop(data: RunData, name: str) -> str:
    """Describe how far a monitored reward was below its best on the images of training, in a clause."""
    window, fall = data.config.monitor.window, data.config.monitor.fall
    rows = list(takewhile(lambda row: name in row.monitored, reversed(data.metrics)))[::-1]
    if len(rows) < 2 * window:
        monitored = count(len(rows), "iteration")
        return f"{name_reward(name)} was monitored for {monitored}, and the alarm needs {2 * window}"
    drop = measure_drop([row.monitored[name] for row in rows], [row.reward_stds[name] for row in rows], window=window)
    side, size = ("below", drop.deviations) if drop.deviations >= 0 else ("above", -drop.deviations)
    text = (
        f"over the last {window} iterations, {name_reward(name)} was {size:.2g} standard deviations {side} its best "
        f"{window} before; an alarm needs {fall:g} below"
    )
    return text if drop.deviations <= fall else f"{text} while the training reward rises, which it did not"
