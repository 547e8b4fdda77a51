"""Whoever answers a question about an image: the protocol, and one of three judges made from the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rlcm_cli.rewards.alignment import local
from rlcm_cli.rewards.alignment.llava_server import LlavaServerJudge
from rlcm_cli.rewards.alignment.openai import OpenAIJudge
from rlcm_cli.rewards.alignment.settings import JudgeSettings

if TYPE_CHECKING:
    from torch import Tensor


class Judge(Protocol):
    """Answers one question about each image of a batch.

    Args:
        images: uint8 [B, 3, H, W], RGB, on any device.
        questions: B questions.

    Returns:
        B answers without white space around them; an answer may be empty.

    Raises:
        RewardError: If the judge gives no answer.
    """

    def __call__(self, images: Tensor, questions: Sequence[str], /) -> list[str]:
        """Return one answer an image."""
        ...


def make_judge(settings: JudgeSettings, reward: str) -> Judge:
    """Make the judge of checked settings; a local one is loaded.

    Raises:
        ConfigError: If the environment's address cannot be.
        RewardError: If an address or a name is missing, or a local model cannot be had or used.
    """
    match settings.judge:
        case "openai":
            return OpenAIJudge(settings, reward)
        case "llava-server":
            return LlavaServerJudge(settings, reward)
        case _:
            return local.LocalJudge(settings, reward)


def judge_obstacle(settings: JudgeSettings, reward: str) -> str | None:
    """Say why the judge cannot answer here now, without loading or asking it; None where nothing is known amiss."""
    return local.model_obstacle(settings, reward) if settings.judge == "local" else settings.server_obstacle(reward)


def revise_judge(settings: JudgeSettings, reward: str) -> str:
    """Identify what answers: the digest of a local model's files, or the kind of server and the model's name."""
    if settings.judge == "local":
        return local.digest_model(settings, reward)
    return f"openai:{settings.model}" if settings.judge == "openai" else "llava-server"
