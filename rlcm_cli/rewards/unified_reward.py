"""UnifiedReward 2.0: how well the image fits the prompt, how flawless and how beautiful it is, rated from 1 to 5.

Wang et al. 2025, arXiv 2503.05236. The question is that of CodeGoat24/UnifiedReward, UnifiedReward-2.0-inference,
point_score_ACS_image_generation.py. Images are sent without loss; there they are JPEGs of quality 95.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.judges import JUDGE_DEFAULTS, JUDGE_PLACEMENT, Judge, JudgeSettings, read_settings
from rlcm_cli.wording import shorten

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b"
AXES = ("alignment", "coherence", "style")
LEAST, MOST = 1.0, 5.0
"""Bounds of a rating."""

QUESTION = (
    "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
    "across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is "
    "(absence of visual glitches, object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\n"
    "Style Score (1-5): Z\n\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
"""What the model was trained with, word for word."""

_NAME = "unified_reward"
_log = logging.getLogger(__name__)


def unified_reward(axes: Sequence[str], **judge: Any) -> RewardFn:
    """Make the reward: the mean of the judge's ratings on `axes`, from 1 to 5.

    An answer that lacks a rating counts as 1 there, with a warning; where that goes for every answer of a call with
    several images, the judge is something else.

    Args:
        axes: Those of `AXES` that count.
        judge: The settings of `JudgeSettings`.

    Raises:
        ConfigError: If a setting is impossible.
        RewardError: If the judge cannot run here. The reward itself raises it if the judge gives no answer, or none
            of several answers has the ratings.
    """
    chosen, settings = _read_settings({"axes": axes, **judge})
    ask = chosen.make(settings, _NAME)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        answers = ask(images, [QUESTION.replace("{prompt}", prompt) for prompt in prompts])
        ratings = [[read_rating(answer, axis) for axis in axes] for answer in answers]
        _complain(answers, [None in of_image for of_image in ratings])
        filled = [[LEAST if rating is None else rating for rating in of_image] for of_image in ratings]
        return torch.tensor(filled, dtype=torch.float32).reshape(len(answers), len(axes)).mean(1)

    return score


def read_rating(answer: str, axis: str) -> float | None:
    """Return the last rating on an axis that an answer states, within 1 to 5; None where it states none.

    Args:
        answer: Such as "Alignment Score (1-5): 2.69".
        axis: One of `AXES`.
    """
    found = re.findall(rf"\b{axis}\s+Score\s*(?:\(1-5\))?[\s*]*:[\s*]*(\d{{1,9}}(?:\.\d+)?)", answer, re.IGNORECASE)
    return min(max(float(found[-1]), LEAST), MOST) if found else None


def _complain(answers: Sequence[str], lacking: Sequence[bool]) -> None:
    """Warn of answers that lack a rating; raise `RewardError` where all of several do."""
    if not any(lacking):
        return
    said = " ".join(shorten(answers[list(lacking).index(True)]).split())
    if len(answers) > 1 and all(lacking):
        raise RewardError(
            f"reward {_NAME!r}: none of {len(answers)} answers has the ratings, the first being {said!r}; let "
            f"the judge serve {MODEL} or another UnifiedReward 2.0, and check reward_settings.{_NAME}.max_tokens"
        )
    _log.warning(
        "reward %r: %d of %d answers lack a rating, which counts as 1, such as %r",
        _NAME,
        sum(lacking),
        len(answers),
        said,
    )


def _read_settings(settings: Settings) -> tuple[Judge, JudgeSettings]:
    axes = settings["axes"]
    known = isinstance(axes, list | tuple) and all(isinstance(axis, str) and axis in AXES for axis in axes)
    if not known or not axes or len(set(axes)) < len(axes):
        raise ConfigError(f"reward {_NAME!r}: axes {axes!r} must be a list of some of {', '.join(AXES)}")
    return read_settings(settings, _NAME)


def _check(settings: Settings) -> None:
    _read_settings(settings)


def _revise(settings: Settings) -> str:
    judge, chosen = _read_settings(settings)
    return judge.revise(chosen, _NAME)


def _find_obstacle(settings: Settings) -> str | None:
    judge, chosen = _read_settings(settings)
    return judge.find_obstacle(chosen, _NAME)


ENTRIES = {
    _NAME: RewardEntry(
        unified_reward,
        description="how well the image fits the prompt, how flawless and how beautiful it is (UnifiedReward 2.0)",
        value_range="1 to 5",
        bounds=(LEAST, MOST),
        needs=f"an OpenAI-compatible endpoint that serves {MODEL}, or its weights (17.5 GB)",
        settings={**JUDGE_DEFAULTS, "model": MODEL, "max_tokens": 512, "axes": list(AXES)},
        check=_check,
        placement=JUDGE_PLACEMENT,
        neural=True,
        revise=_revise,
        obstacle=_find_obstacle,
    ),
}
