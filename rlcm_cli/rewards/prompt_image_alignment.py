"""Prompt-image alignment: how much of the prompt a judge says when it is asked what is going on.

DDPO, arXiv 2305.13301, section 5.2. The question, the sentence, and that the answer is the candidate and the sentence
the reference, are as in kvablack/ddpo-pytorch (`llava_bertscore`), which RLCM (arXiv 2404.03673) follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.judges import (
    JUDGE_DEFAULTS,
    JUDGE_PLACEMENT,
    NEEDS,
    Judge,
    JudgeSettings,
    RecallFn,
    read_settings,
)
from rlcm_cli.rewards.networks.bertscore import SCORER, RecallScorer, digest_scorer, find_scorer_obstacle

if TYPE_CHECKING:
    from torch import Tensor

QUESTION = "Answer concisely: what is going on in this image?"

_NAME = "prompt_image_alignment"


def reference(prompt: str) -> str:
    """Return the sentence that the answer is compared with."""
    return f"The image contains {prompt}"


def prompt_image_alignment(scorer_model: str, scorer_layer: int | None, **judge: Any) -> RewardFn:
    """Make the reward: BERTScore recall of the judge's answer against "The image contains {prompt}", at most 1.

    An empty answer gets 0. A LLaVA-server scores its answers itself, with the default scorer.

    Args:
        scorer_model: Folder or hub id of the language model behind BERTScore.
        scorer_layer: Its layer, from 1; None takes bert-score's choice for a published model (40 for the default).
        judge: The settings of `JudgeSettings`.

    Raises:
        ConfigError: If a setting is impossible.
        RewardError: If the judge or the scorer cannot run here. The reward itself raises it if the judge gives no
            answer.
    """
    chosen, settings = _read_settings(judge, scorer_model, scorer_layer)
    if chosen.make_recall:
        return _score_by_judge(chosen.make_recall(settings, _NAME))
    ask = chosen.make(settings, _NAME)
    scorer = RecallScorer(scorer_model, scorer_layer, _NAME)

    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        answers = ask(images, [QUESTION] * len(prompts))
        return scorer(answers, [reference(prompt) for prompt in prompts], images.device)

    return score


def _score_by_judge(recall: RecallFn) -> RewardFn:
    def score(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        recalls = recall(images, QUESTION, [reference(prompt) for prompt in prompts])
        return torch.tensor(recalls, dtype=torch.float32)

    return score


def _read_settings(
    values: Mapping[str, Any], scorer_model: str, scorer_layer: int | None
) -> tuple[Judge, JudgeSettings]:
    judge, settings = read_settings(values, _NAME)
    if judge.make_recall and (scorer_model != SCORER.source or scorer_layer is not None):
        raise ConfigError(
            f"reward {_NAME!r}: judge {judge.kind} scores its answers itself, with {SCORER.source}; leave "
            "scorer_model and scorer_layer unset"
        )
    return judge, settings


def _revise(settings: Settings) -> str:
    judge, chosen = _read_settings(settings, settings["scorer_model"], settings["scorer_layer"])
    revision = judge.revise(chosen, _NAME)
    return revision if judge.make_recall else f"{revision} {digest_scorer(settings['scorer_model'], _NAME)}"


def _find_obstacle(settings: Settings) -> str | None:
    judge, chosen = _read_settings(settings, settings["scorer_model"], settings["scorer_layer"])
    obstacle = judge.find_obstacle(chosen, _NAME)
    return obstacle if obstacle or judge.make_recall else find_scorer_obstacle(settings["scorer_model"], _NAME)


ENTRIES = {
    _NAME: RewardEntry(
        prompt_image_alignment,
        description="a vision-language judge describes the image: BERTScore recall of its words against the prompt",
        value_range="0 to 1, mostly 0.5 to 0.9",
        bounds=(0.0, 1.0),
        needs=f"{NEEDS}; the extra alignment and {SCORER.requirement}, which a LLaVA-server brings itself",
        settings={**JUDGE_DEFAULTS, "scorer_model": SCORER.source, "scorer_layer": None},
        placement=JUDGE_PLACEMENT,
        neural=True,
        revise=_revise,
        obstacle=_find_obstacle,
    ),
}
