"""Prompt-image alignment: how much of the prompt a judge says when it is asked what is going on.

DDPO, arXiv 2305.13301, section 5.2. The question, the sentence, and that the answer is the candidate and the sentence
the reference, are as in kvablack/ddpo-pytorch (`llava_bertscore`), which RLCM (arXiv 2404.03673) follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.alignment.bertscore import SCORER_MODEL, RecallScorer, digest_scorer, scorer_obstacle
from rlcm_cli.rewards.alignment.judges import judge_obstacle, make_judge, revise_judge
from rlcm_cli.rewards.alignment.llava_server import LlavaServerJudge
from rlcm_cli.rewards.alignment.settings import JUDGE_DEFAULTS, JUDGE_PLACEMENT, JudgeSettings, judge_settings
from rlcm_cli.rewards.contract import RewardEntry, RewardFn, Settings

if TYPE_CHECKING:
    from torch import Tensor

QUESTION = "Answer concisely: what is going on in this image?"

_NAME = "prompt_image_alignment"


def reference(prompt: str) -> str:
    """Return the sentence that the answer is held against."""
    return f"The image contains {prompt}"


def prompt_image_alignment(scorer_model: str, scorer_layer: int | None, **judge: Any) -> RewardFn:
    """Make the reward: BERTScore recall of the judge's answer against "The image contains {prompt}", at most 1.

    An empty answer gets 0. A LLaVA-server scores its answers itself, with the default scorer.

    Args:
        scorer_model: Folder or hub id of the language model behind BERTScore.
        scorer_layer: Its layer, from 1; None takes bert-score's choice for a published model (40 for the default).
        judge: The settings of `JudgeSettings`.

    Raises:
        ConfigError: If a setting cannot be.
        RewardError: If the judge or the scorer cannot run here. The reward itself raises it if the judge gives no
            answer.
    """
    settings = _judge(judge, scorer_model, scorer_layer)
    if settings.judge == "llava-server":
        return _score_on_server(LlavaServerJudge(settings, _NAME))
    answer = make_judge(settings, _NAME)
    scorer = RecallScorer(scorer_model, scorer_layer, _NAME)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        answers = answer(images, [QUESTION] * len(prompts))
        return scorer(answers, [reference(prompt) for prompt in prompts], images.device)

    return score


def _score_on_server(server: LlavaServerJudge) -> RewardFn:
    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        recalls = server.recall(images, QUESTION, [reference(prompt) for prompt in prompts])
        return torch.tensor(recalls, dtype=torch.float32)

    return score


def _judge(values: Mapping[str, Any], scorer_model: str, scorer_layer: int | None) -> JudgeSettings:
    settings = judge_settings(values, _NAME)
    if settings.judge == "llava-server" and (scorer_model != SCORER_MODEL or scorer_layer is not None):
        raise ConfigError(
            f"reward {_NAME!r}: a LLaVA-server scores its answers itself, with {SCORER_MODEL}; leave scorer_model and "
            "scorer_layer unset"
        )
    return settings


def _revise(settings: Settings) -> str:
    judge = _judge(settings, settings["scorer_model"], settings["scorer_layer"])
    revision = revise_judge(judge, _NAME)
    if judge.judge == "llava-server":
        return revision
    return f"{revision} {digest_scorer(settings['scorer_model'], _NAME)}"


def _obstacle(settings: Settings) -> str | None:
    judge = _judge(settings, settings["scorer_model"], settings["scorer_layer"])
    obstacle = judge_obstacle(judge, _NAME)
    if obstacle or judge.judge == "llava-server":
        return obstacle
    return scorer_obstacle(settings["scorer_model"], _NAME)


ENTRIES = {
    _NAME: RewardEntry(
        prompt_image_alignment,
        description="a vision-language judge describes the image: BERTScore recall of its words against the prompt",
        value_range="0 to 1, mostly 0.5 to 0.9",
        bounds=(0.0, 1.0),
        needs=(
            "a judge (an OpenAI-compatible endpoint, a LLaVA-server, or local weights: 14 GB for LLaVA 1.5 7B); the "
            "extra alignment and DeBERTa-xlarge-MNLI (at most 3 GB), which a LLaVA-server brings itself"
        ),
        defaults={**JUDGE_DEFAULTS, "scorer_model": SCORER_MODEL, "scorer_layer": None},
        placement=JUDGE_PLACEMENT,
        neural=True,
        revise=_revise,
        obstacle=_obstacle,
    ),
}
