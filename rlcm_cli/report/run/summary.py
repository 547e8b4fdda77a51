"""What a run came to, in numbers and words: the change on fixed images with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile

import torch
from torch import Tensor

from rlcm_cli.core.hacking import measure_drop
from rlcm_cli.report.compare.contenders import describe_sum
from rlcm_cli.report.private import name_reward, withhold_text
from rlcm_cli.report.run.data import Evidence
from rlcm_cli.report.run.estimates import Estimate, estimate
from rlcm_cli.report.run.goals import find_goals
from rlcm_cli.store.evaluations import Evaluation

PHASES = ("sample_seconds", "score_seconds", "train_seconds")
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
        """What changed, for people."""
        return self.reward if self.is_sum else name_reward(self.reward)

    def verdict(self) -> str:
        """Say in a word what became of the mean."""
        if not math.isfinite(self.difference.error):
            return "unclear"
        if abs(self.difference.mean) <= CLEAR * self.difference.error or not self.difference.mean:
            return "no clear change"
        return "rose" if self.difference.mean > 0 else "fell"


def estimate_part(evaluation: Evaluation, values: Tensor, *, held_out: bool) -> Estimate | None:
    """Average values of an evaluation's images, [B], over its training prompts or over those kept out of training."""
    rows = (evaluation.held_out == held_out).nonzero()[:, 0].tolist()
    return estimate(values.double()[rows].tolist(), [evaluation.prompts[row] for row in rows])


def find_changes(evidence: Evidence) -> list[Change]:
    """Compare the first and the last evaluation: what is trained for, where that is a sum, then reward by reward.

    None where there are not two of the same images.
    """
    if len(evidence.evaluations) < 2:
        return []
    first, last = evidence.evaluations[0], evidence.evaluations[-1]
    if first.prompts != last.prompts or not torch.equal(first.seed, last.seed):
        return []
    goals = [(goal.name, goal.values(first), goal.values(last)) for goal in find_goals(evidence)]
    single = [
        (reward, first.rewards[reward].double(), last.rewards[reward].double())
        for reward in evidence.rewards()
        if reward in first.rewards and reward in last.rewards
    ]
    changes = []
    for number, (reward, then, now) in enumerate([*goals, *single]):
        for held_out in (False, True):
            rows = (first.held_out == held_out).nonzero()[:, 0].tolist()
            parts = [
                estimate(values[rows].tolist(), [first.prompts[row] for row in rows])
                for values in (then, now, now - then)
            ]
            before, after, moved = parts
            if before and after and moved:
                changes.append(Change(reward, held_out, before, after, moved, is_sum=number < len(goals)))
    return changes


def say_number(value: float) -> str:
    """Give a number for people, with four significant digits."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def say_estimate(found: Estimate) -> str:
    """Give mean ± standard error, with the decimals that the error resolves."""
    error = "" if not math.isfinite(found.error) else f"\u00a0±\u00a0{say_resolved(found.error, found.error)}"
    return say_resolved(found.mean, found.error) + error


def say_resolved(value: float, error: float) -> str:
    """Give a number with the decimals that a standard error resolves: two digits of the error."""
    if not (math.isfinite(error) and error):
        return say_number(value)
    places = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:z,.{places}f}".replace("-", "−")


def say_duration(seconds: float) -> str:
    """Give a duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say_count(count: int, noun: str) -> str:
    """Give a count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def describe_goal(evidence: Evidence) -> str:
    """Say what a run is trained for."""
    tasks = evidence.run.contender.tasks
    goals = [describe_sum(weights) for weights in tasks.values()]
    return (
        goals[0] if len(goals) == 1 else "; ".join(f"{task}: {goal}" for task, goal in zip(tasks, goals, strict=True))
    )


def describe_training(evidence: Evidence) -> str:
    """Say in a sentence what was trained, on what and how."""
    config = evidence.run.config
    train, sample = config["train"], config["sample"]
    what = (
        "All weights of the denoiser" if train["parameters"] == "full" else f"A LoRA of rank {config['lora']['rank']}"
    )
    sources = [task["prompts"]["source"] for task in config["tasks"].values()] or [config["prompts"]["source"]]
    return (
        f"{what} of {withhold_text(config['model']['name'])}, trained by {config['objective']['kind'].upper()} for "
        f"{describe_goal(evidence)}, on the prompts of {', '.join(withhold_text(source) for source in sources)}: "
        f"{say_count(len(evidence.metrics), 'iteration')} of {say_count(sample['samples'], 'image')}, "
        f"{say_count(sample['steps'], 'model call')} per image, seed {config['seed']}."
    )


def describe_cost(evidence: Evidence) -> str:
    """Say in a sentence how much was drawn and how long it took."""
    metrics = evidence.metrics
    images = sum(int(row.get("samples", 0)) for row in metrics)
    seconds = {phase: sum(float(row.get(phase) or 0) for row in metrics) for phase in PHASES}
    known = ", ".join(
        f"{phase.removesuffix('_seconds')} {say_duration(value)}" for phase, value in seconds.items() if value
    )
    text = f"{say_count(images, 'image')} drawn and scored"
    if known:
        text += f" in {say_duration(sum(seconds.values()))} of work ({known})"
    if metrics and metrics[-1].get("finished_at"):
        text += f"; last iteration on {datetime.fromtimestamp(metrics[-1]['finished_at'], UTC):%d %B %Y, %H:%M} UTC"
    return f"{text}."


def describe_change(change: Change) -> str:
    """Say in a sentence how a reward changed on fixed images."""
    prompts = change.difference.prompts
    where = (
        f"{say_count(prompts, 'prompt')} kept out of training"
        if change.held_out
        else f"{say_count(prompts, 'training prompt')} with held-out seeds"
    )
    verdict = {"no clear change": "did not change clearly", "unclear": "went"}.get(change.verdict(), change.verdict())
    return (
        f"On {where}, {change.name} {verdict}: {describe_ends(change)}, a change of {say_estimate(change.difference)}."
    )


def describe_ends(change: Change) -> str:
    """Give the means before and after, with the decimals of the change."""
    before, after = (say_resolved(part.mean, change.difference.error) for part in (change.before, change.after))
    return f"{before} → {after}"


def describe_monitoring(evidence: Evidence) -> str:
    """Say what the monitored rewards tell, where none raises an alarm: by the images of training, and by how much."""
    monitor = evidence.run.config["monitor"]
    if not monitor["rewards"]:
        return "No reward was monitored, so reward hacking would not show here; use --monitor NAME."
    found = "; ".join(_describe_drop(evidence, name) for name in monitor["rewards"])
    return f"No alarm, which looks at the images of training: {found}."


def _describe_drop(evidence: Evidence, name: str) -> str:
    window, fall = evidence.run.config["monitor"]["window"], evidence.run.config["monitor"]["fall"]
    rows = list(takewhile(lambda row: name in row["monitored"], reversed(evidence.metrics)))[::-1]
    if len(rows) < 2 * window:
        monitored = say_count(len(rows), "iteration")
        return f"{name_reward(name)} was monitored for {monitored}, and the alarm needs {2 * window}"
    drop = measure_drop(
        [row["monitored"][name] for row in rows], [row["reward_stds"][name] for row in rows], window=window
    )
    side, size = ("below", drop.deviations) if drop.deviations > 0 else ("above", -drop.deviations)
    told = (
        f"{name_reward(name)} was in the last {window} iterations {size:.2g} standard deviations {side} its best "
        f"{window} before; an alarm needs {fall:g} below"
    )
    return told if drop.deviations <= fall else f"{told}, while what is trained for rises, which it did not"
