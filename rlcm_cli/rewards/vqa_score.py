"""VQAScore: the probability that a vision-language model says "Yes", the image shows the prompt.

Lin et al. 2024, arXiv 2404.01291. As in linzhiqiu/t2v_metrics with its Qwen3-VL and Qwen2.5-VL models. The paper's own
CLIP-FlanT5 is no model of transformers, and its numbers are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.networks.loading import DTYPES
from rlcm_cli.rewards.networks.qwen_vl import MODEL_FILES, load_qwen_vl

if TYPE_CHECKING:
    from torch import Tensor

MODEL = Weights("Qwen/Qwen3-VL-8B-Instruct", MODEL_FILES, "17.5 GB")
QUESTION = 'Does this figure show "{prompt}"? Please answer Yes or No.'
ANSWERS = ("Yes",)

_NAME = "vqa_score"
_FEWEST_TOKENS, _MOST_TOKENS = 4, 16384
"""Of an image, as qwen-vl-utils resizes it for the published code."""


def vqa_score(model: Path, question: str, answers: Sequence[str], dtype: str) -> RewardFn:
    """Make the reward: the probability that the model's answer begins with one of `answers`, in [0, 1].

    Args:
        model: Folder of a model of the Qwen-VL series.
        question: What is asked; {prompt} stands for the prompt.
        answers: What is looked for; the probabilities of their first tokens are added.
        dtype: Of the weights; `auto` is the one that they were saved in.

    Raises:
        RewardError: If the model cannot be loaded. The reward itself raises it for a prompt that holds the model's
            image token.
    """
    judge = load_qwen_vl(model, reward=_NAME, dtype=dtype).with_tokens(_FEWEST_TOKENS, _MOST_TOKENS)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        questions = [question.replace("{prompt}", prompt) for prompt in prompts]
        return judge.log_probs(images, questions, [answers] * len(prompts)).exp()

    return score


def _check(settings: Settings) -> None:
    question, answers, dtype = settings["question"], settings["answers"], settings["dtype"]
    if not isinstance(question, str) or "{prompt}" not in question:
        raise ConfigError(f"reward {_NAME!r}: question {question!r} must be a text with {{prompt}} in it")
    if not isinstance(answers, list | tuple) or not answers or not all(isinstance(a, str) and a for a in answers):
        raise ConfigError(f"reward {_NAME!r}: answers {answers!r} must be a list of texts, such as ['Yes']")
    if dtype not in DTYPES:
        raise ConfigError(f"reward {_NAME!r}: dtype {dtype!r} must be one of {', '.join(DTYPES)}")


ENTRIES = {
    _NAME: RewardEntry(
        vqa_score,
        description="the probability that a vision-language model says Yes, the image shows the prompt (VQAScore)",
        value_range="0 to 1",
        bounds=(0.0, 1.0),
        weights={"model": MODEL},
        settings={"question": QUESTION, "answers": list(ANSWERS), "dtype": "bfloat16"},
        check=_check,
        neural=True,
        differentiable=True,
    ),
}
