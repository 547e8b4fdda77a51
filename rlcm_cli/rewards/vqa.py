"""Visual question answering: whether a judge answers a question about the image as the prompt demands.

The counting prompts ("three tigers") are those of kvablack/ddpo-pytorch, whose `llava_strict_satisfaction` looks for
the expected answer anywhere in the judge's; here it must be a whole word, and a number may be a word or digits.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.judges import JUDGE_DEFAULTS, JUDGE_PLACEMENT, NEEDS, read_settings

if TYPE_CHECKING:
    from torch import Tensor

COUNTING_QUESTION = "How many {noun} are there in this image? Answer with a number."
COUNTING_ANSWER = "{number}"

_NAME = "vqa"
_FIELDS = ("prompt", "number", "noun")
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, start=2)},
    **{f"{ten}-{_ONES[one]}": 10 * value + one for value, ten in enumerate(_TENS, start=2) for one in range(1, 10)},
}
_NUMBER = re.compile(
    rf"(?<![\w-])(?<!\d[.,])(?:\d{{1,9}}|{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![\w-]|[.,]\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Demand:
    """What is asked about an image, and the answer that is wanted."""

    question: str
    answer: str


def vqa(question: str, answer: str, **judge: Any) -> RewardFn:
    """Make the reward: 1 where the judge's answer states the expected one, else 0.

    `question` and `answer` are templates with the field {prompt} and, of a counting prompt such as "three tigers" or
    "3 tigers", {number} (in digits) and {noun} (all that follows the number). A template with {number} or {noun} fits
    counting prompts only; others need, for instance, "Does this image show {prompt}? Answer yes or no." and "yes".

    An expected answer that is a number (a word up to ninety-nine, or digits) is stated if it is the first number of
    the judge's answer, as a word or in digits; any other if it stands there as whole words, whatever their case.

    Args:
        question: Template of the question.
        answer: Template of the expected answer.
        judge: The settings of `JudgeSettings`.

    Raises:
        ConfigError: If a setting is impossible.
        RewardError: If the judge cannot run here. The reward itself raises it for a prompt that the templates do not
            fit, and if the judge gives no answer.
    """
    fields = _read_fields("question", question) | _read_fields("answer", answer)
    chosen, settings = read_settings(judge, _NAME)
    ask = chosen.make(settings, _NAME)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        demands = [_make_demand(question, answer, fields, prompt) for prompt in prompts]
        answers = ask(images, [demand.question for demand in demands])
        stated = [states(text, demand.answer) for text, demand in zip(answers, demands, strict=True)]
        return torch.tensor(stated, dtype=torch.float32)

    return score


def states(answer: str, expected: str) -> bool:
    """Return whether an answer states the expected one, as `vqa` defines it."""
    number = _read_number(expected)
    if number is not None:
        first = _NUMBER.search(answer)
        return first is not None and _read_number(first.group()) == number
    return re.search(rf"(?<!\w){re.escape(expected.strip())}(?!\w)", answer, re.IGNORECASE) is not None


def _read_number(text: str) -> int | None:
    """Return the number that a text is, and nothing else; None where it is none."""
    text = text.strip().lower()
    if not _NUMBER.fullmatch(text):
        return None
    return _WORDS[text] if text in _WORDS else int(text)


def _read_fields(setting: str, template: object) -> set[str]:
    """Return the fields of a template; raises `ConfigError` for other fields than ours."""
    known = ", ".join(f"{{{name}}}" for name in _FIELDS)
    fault = f"reward {_NAME!r}: {setting} {template!r} must be a text with no other fields than {known}"
    if not isinstance(template, str) or not template.strip():
        raise ConfigError(fault)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{fault} ({error})") from error
    if any(name is not None and (name not in _FIELDS or form or change) for _, name, form, change in parts):
        raise ConfigError(fault)
    return {name for _, name, _, _ in parts if name is not None}


def _make_demand(question: str, answer: str, fields: set[str], prompt: str) -> _Demand:
    values = {"prompt": prompt}
    if fields & {"number", "noun"}:
        first, _, noun = prompt.strip().partition(" ")
        number = _read_number(first)
        if number is None or not noun.strip():
            raise RewardError(
                f"reward {_NAME!r}: prompt {prompt!r} is not of the form NUMBER NOUN, such as 'three tigers'; use "
                f"counting prompts, or templates with only {{prompt}} in reward_settings.{_NAME}.question and .answer"
            )
        values |= {"number": str(number), "noun": noun.strip()}
    return _Demand(question.format(**values), answer.format(**values))


def _revise(settings: Settings) -> str:
    judge, chosen = read_settings(settings, _NAME)
    return judge.revise(chosen, _NAME)


def _find_obstacle(settings: Settings) -> str | None:
    judge, chosen = read_settings(settings, _NAME)
    return judge.find_obstacle(chosen, _NAME)


ENTRIES = {
    _NAME: RewardEntry(
        vqa,
        description="a vision-language judge answers a question made from the prompt, such as how many there are",
        value_range="0 or 1",
        bounds=(0.0, 1.0),
        needs=NEEDS,
        settings={**JUDGE_DEFAULTS, "question": COUNTING_QUESTION, "answer": COUNTING_ANSWER},
        placement=JUDGE_PLACEMENT,
        neural=True,
        revise=_revise,
        obstacle=_find_obstacle,
    ),
}
