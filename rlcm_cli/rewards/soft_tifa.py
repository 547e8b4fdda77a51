"""Soft-TIFA of GenEval 2: how surely a vision-language model answers questions about the prompt as it should.

Kamath et al. 2025, arXiv 2512.16853. As in facebookresearch/GenEval2, evaluation.py: every question is asked by
itself, with "Answer in one word.", and scores the probability that the answer begins with the right word, in any of
its writings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.networks.loading import DTYPES
from rlcm_cli.rewards.networks.qwen_vl import MODEL_FILES, load_qwen_vl
from rlcm_cli.wording import shorten

if TYPE_CHECKING:
    from torch import Tensor

MODEL = Weights("Qwen/Qwen3-VL-8B-Instruct", MODEL_FILES, "17.5 GB")
MEANS = ("geometric", "arithmetic")
INSTRUCTION = "Answer in one word."
YES = ("Yes", "yes", " yes", " Yes")

_NAME = "soft_tifa"
_COUNTING = "How many"
_DIGITS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
           "nine": "9", "ten": "10"}  # fmt: skip
_ADVICE = (
    "--set reward_settings.soft_tifa.questions=FILE, such as geneval2_data.jsonl of the repository "
    "facebookresearch/GenEval2"
)


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        text: The question.
        answer: The right answer.
    """

    text: str
    answer: str

    @property
    def writings(self) -> Sequence[str]:
        """The answers that count as right: of a number, words and digits; of every other question, yes."""
        if not self.text.startswith(_COUNTING):
            return YES
        # "other", for numbers above ten, is the published code's.
        words = (self.answer, self.answer.capitalize(), _DIGITS.get(self.answer, "other"))
        return [f"{start}{word}" for start in ("", " ") for word in words]


def soft_tifa(model: Path, questions: str, mean: str, dtype: str) -> RewardFn:
    """Make the reward: the mean over the prompt's questions of the probability of the right answer, in [0, 1].

    Args:
        model: Folder of a model of the Qwen-VL series.
        questions: File of `read_questions`.
        mean: `geometric`, which the benchmark takes for whole prompts, or `arithmetic`.
        dtype: Of the weights; `auto` is the one that they were saved in.

    Raises:
        RewardError: If the model or the questions cannot be loaded. The reward itself raises it for a prompt that the
            file has no questions for.
    """
    asked = read_questions(Path(questions))
    judge = load_qwen_vl(model, reward=_NAME, dtype=dtype)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        own = [_find(asked, prompt, questions) for prompt in prompts]
        counts = [len(of_image) for of_image in own]
        flat = [question for of_image in own for question in of_image]
        rows = torch.repeat_interleave(torch.tensor(counts)).to(images.device)
        texts = [f"{question.text} {INSTRUCTION}" for question in flat]
        likely = judge.log_probs(images[rows], texts, [question.writings for question in flat])
        parts = torch.split(likely, counts)
        if mean == "geometric":
            return torch.stack([part.mean() for part in parts]).exp()
        return torch.stack([part.exp().mean() for part in parts])

    return score


def read_questions(file: Path) -> dict[str, tuple[Question, ...]]:
    """Read the questions of each prompt.

    Args:
        file: One JSON object a line with the fields `prompt` and `vqa_list`, a list of [question, answer]; other
            fields are not read. The layout of geneval2_data.jsonl.

    Raises:
        RewardError: If the file cannot be read, or a line is something else: which line.
    """
    found: dict[str, tuple[Question, ...]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RewardError(f"reward {_NAME!r}: the questions in {file} cannot be read ({reason}); {_ADVICE}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt, own = _parse(line, f"{file}, line {number}")
        if found.setdefault(prompt, own) != own:
            raise RewardError(
                f"reward {_NAME!r}: {file}, line {number} has other questions for {shorten(prompt)!r} than an earlier "
                "line; keep one of them"
            )
    if not found:
        raise RewardError(f"reward {_NAME!r}: {file} holds no questions; {_ADVICE}")
    return found


def _parse(line: str, place: str) -> tuple[str, tuple[Question, ...]]:
    wanted = 'is not {"prompt": "…", "vqa_list": [["question", "answer"], …]}'
    try:
        values = json.loads(line)
        prompt, pairs = values["prompt"], values["vqa_list"]
        own = tuple(Question(text, answer) for text, answer in pairs)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RewardError(f"reward {_NAME!r}: {place} {wanted}: {shorten(line)}") from error
    texts = [prompt, *(part for question in own for part in (question.text, question.answer))]
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RewardError(f"reward {_NAME!r}: {place} {wanted}: {shorten(line)}")
    return prompt.strip(), own


def _find(asked: Mapping[str, tuple[Question, ...]], prompt: str, file: str) -> tuple[Question, ...]:
    if prompt.strip() not in asked:
        raise RewardError(
            f"reward {_NAME!r}: {file} has no questions for the prompt {shorten(prompt)!r}; use its prompts "
            f"(--prompts {file}:prompt), or add a line for this one"
        )
    return asked[prompt.strip()]


def _check(settings: Settings) -> None:
    questions, mean, dtype = settings["questions"], settings["mean"], settings["dtype"]
    if not isinstance(questions, str) or not questions:
        raise ConfigError(f"reward {_NAME!r} asks the questions of a file, and none is set; {_ADVICE}")
    for name, value, known in (("mean", mean, MEANS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ConfigError(f"reward {_NAME!r}: {name} {value!r} must be one of {', '.join(known)}")


def _revise(settings: Settings) -> str:
    """Return the SHA-256 (hex) of the questions."""
    content: Any = sorted((prompt, list(map(repr, own))) for prompt, own in _read(settings).items())
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read(settings: Settings) -> dict[str, tuple[Question, ...]]:
    _check(settings)
    return read_questions(Path(settings["questions"]))


def _find_obstacle(settings: Settings) -> str | None:
    if not settings["questions"]:
        return f"no file of questions is set; {_ADVICE}"
    _check(settings)
    return None if Path(settings["questions"]).is_file() else f"there is no file {settings['questions']}; {_ADVICE}"


ENTRIES = {
    _NAME: RewardEntry(
        soft_tifa,
        description="a vision-language model gives the right answers to questions about the prompt (GenEval 2)",
        value_range="0 to 1",
        bounds=(0.0, 1.0),
        weights={"model": MODEL},
        settings={"questions": None, "mean": "geometric", "dtype": "bfloat16"},
        check=_check,
        needs="a file of questions for each prompt, such as geneval2_data.jsonl of facebookresearch/GenEval2",
        neural=True,
        differentiable=True,
        revise=_revise,
        obstacle=_find_obstacle,
    ),
}
