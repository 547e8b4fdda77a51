"""What rewards say of the same prompts drawn in several ways: means over prompts, and wins against the first way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlcm_cli.core.estimates import Estimate, estimate
from rlcm_cli.core.paired_comparisons import WinRate, compare_values

Values = Sequence[float]
"""A number an image, NaN where it has none."""


@dataclass(frozen=True)
class Judgement:
    """What one reward says of the images that were drawn in one way."""

    way: str
    """How the images were drawn, such as by a checkpoint or a LoRA."""
    reward: str
    estimate: Estimate
    images: int
    against: str | None = None
    """The way that it is compared with; None: it is that itself, or there is none."""
    difference: Estimate | None = None
    """Mean of the differences of images with the same prompt and seed."""
    wins: WinRate | None = None


def judge_ways(
    ways: Mapping[str, Mapping[str, Values]], prompts: Sequence[str], against: Mapping[str, str]
) -> list[Judgement]:
    """Summarise the rewards of the same images, drawn in several ways.

    Args:
        ways: Way → reward → its values, one an image; image i of each has the same prompt and seed.
        prompts: Prompt of each image.
        against: Way → the way that it is compared with; one that is left out, or is its own, is compared with none.

    Returns:
        Reward by reward in the order in which they come, each with its ways in theirs. A reward without a value for
        any image of a way is left out there.
    """
    rewards = dict.fromkeys(reward for values in ways.values() for reward in values)
    judgements = []
    for reward in rewards:
        for way, known in ways.items():
            values, base = known.get(reward, ()), against.get(way, way)
            found = estimate(values, prompts) if len(values) else None
            if found is None:
                continue
            images = sum(not math.isnan(value) for value in values)
            other = ways.get(base, {}).get(reward, ()) if base != way else ()
            wins = compare_values(values, other, prompts) if len(other) else None
            if wins is None:
                judgements.append(Judgement(way, reward, found, images))
                continue
            moved = estimate([value - before for value, before in zip(values, other, strict=True)], prompts)
            judgements.append(Judgement(way, reward, found, images, base, moved, wins))
    return judgements


def to_json(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as plain values."""
    found, moved, wins = judgement.estimate, judgement.difference, judgement.wins
    values: dict[str, Any] = {
        "way": judgement.way,
        "reward": judgement.reward,
        "mean": found.mean,
        "standard_error": found.error,
        "prompts": found.prompts,
        "images": judgement.images,
    }
    if judgement.against is not None and moved is not None and wins is not None:
        values |= {
            "against": judgement.against,
            "difference": moved.mean,
            "difference_standard_error": moved.error,
            "win_rate": wins.share,
            "win_rate_interval": list(wins.interval),
        }
    return values
