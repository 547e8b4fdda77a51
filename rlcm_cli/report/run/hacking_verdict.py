"""Whether the training reward is being hacked, by the images of training and by the held-out ones, in one voice.

The alarm compares the newest window of iterations with the best one before; the held-out images compare the last
evaluated checkpoint with the first. They can differ, and where they do a report says so in the same sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlcm_cli.report.private import name_reward, withhold_sentence
from rlcm_cli.report.run.data import RunData
from rlcm_cli.report.run.summary import Change, describe_before_after, describe_drop, find_changes
from rlcm_cli.wording import join_words

TITLE, DOUBT = "Reward hacking", "Reward hacking?"


@dataclass(frozen=True)
class HackingVerdict:
    """What a report says of the monitored rewards."""

    title: str
    """Of the alarms: whether both kinds of images agree."""
    alarms: Sequence[str]
    sentence: str
    """Where nothing is alarming; else empty."""


def judge_hacking(data: RunData) -> HackingVerdict:
    """Judge each monitored reward: an alarm where it fell in training, or on held-out images while the goal rose."""
    monitored = data.config.monitor.rewards
    if not monitored and not data.alarms:
        return HackingVerdict(
            TITLE, [], "No reward was monitored, so reward hacking would not show here; use --monitor NAME."
        )
    changes = find_changes(data)
    rising = _find_rising(data, changes)
    alarms: list[str] = []
    drops: list[str] = []
    seconds: list[str] = []
    doubted = True
    for name in dict.fromkeys([*data.alarms, *monitored]):
        own = [change for change in changes if change.reward == name]
        fallen = [change for change in own if change.verdict() == "fell"]
        hacked = [change for change in fallen if change.held_out in rising]
        if name in data.alarms:
            doubted = doubted and bool(own) and not fallen
            alarms.append(_describe_alarm(name, data.alarms[name], own, fallen=bool(fallen)))
        elif hacked:
            alarms.append(
                f"On the held-out images, the monitored reward {name_reward(name)} fell while what is trained for "
                f"rose: {_show(own)}. The images of training raise no alarm: {describe_drop(data, name)}. "
                f"`--checkpoint best:{name_reward(name)}` names the evaluated checkpoint where it was highest."
            )
        else:
            drops.append(describe_drop(data, name))
            seconds += _describe_quiet(name, own, fallen=bool(fallen))
    if alarms:
        return HackingVerdict(DOUBT if doubted else TITLE, alarms, "")
    text = " ".join([f"No alarm, judged by the images of training: {'; '.join(drops)}.", *seconds])
    return HackingVerdict(TITLE, [], text)


def _find_rising(data: RunData, changes: Sequence[Change]) -> set[bool]:
    """Return on which fixed images what is trained for rose: those of held-out prompts (True), or the others."""
    alone = [weights for weights in data.run.tasks.values() if len(weights) == 1]
    single = {name: weight for weights in alone for name, weight in weights.items()}
    rising = set()
    for change in changes:
        weight = 1.0 if change.is_sum else single.get(change.reward, 0.0)
        if weight and change.verdict() == ("rose" if weight > 0 else "fell"):
            rising.add(change.held_out)
    return rising


def _describe_alarm(name: str, message: str, own: Sequence[Change], *, fallen: bool) -> str:
    """Return an alarm of the images of training, and what the held-out images say of the same reward."""
    text = f"By the images of training, {withhold_sentence(message.replace(name, name_reward(name)))}."
    if not own:
        return text
    if fallen:
        return f"{text} The held-out images agree: {_show(own)}."
    return f"{text} The held-out images do not: {_show(own)}. Look at the images before you decide."


def _describe_quiet(name: str, own: Sequence[Change], *, fallen: bool) -> list[str]:
    """Say what the held-out images show of a reward that raises no alarm; of a fall also why it is none."""
    if not own:
        return []
    why = "; but what is trained for did not rise there" if fallen else ""
    return [f"On the held-out images, {name_reward(name)} went {_show(own)}{why}."]


def _show(changes: Sequence[Change]) -> str:
    """Return means before and after with the verdict, of changes of one reward."""
    return join_words(
        [
            f"{describe_before_after(change)} on {'held-out prompts' if change.held_out else 'held-out seeds'} "
            f"({change.verdict()})"
            for change in changes
        ]
    )
