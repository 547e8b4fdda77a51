"""Vision-language judges, one file each: models that answer a question about each image of a batch.

A module of this folder that does not begin with an underscore is a judge. Its name is the judge's kind, and its
constant `JUDGE` says all that the rest of the program needs to know. No module imports torch when it is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from rlcm_cli.discovery import discover, list_kinds
from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.networks.loading import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

ENDPOINT_VARIABLE = "RLCM_JUDGE_ENDPOINT"
KEY_VARIABLE = "RLCM_JUDGE_API_KEY"

NEEDS = "a judge: an OpenAI-compatible endpoint, a LLaVA-server, or local weights (14 GB for LLaVA 1.5 7B)"
"""What the rewards that ask a judge need, in words."""


@dataclass(frozen=True)
class JudgeSettings:
    """Which judge looks at the images, and how it is asked.

    Attributes:
        judge: `openai`, any server of the OpenAI protocol (vLLM, SGLang, llama.cpp, Ollama, a provider);
            `llava-server`, kvablack/LLaVA-server; `local`, a transformers image-text-to-text model in this process.
        endpoint: Address of a server, such as `http://host:8000/v1` (openai) or `http://host:8085` (llava-server);
            None takes it from the environment variable RLCM_JUDGE_ENDPOINT.
        model: openai: the name of a model that the server knows. local: a folder or hub id, None for LLaVA 1.5 7B.
        api_key_env: openai: the environment variable that holds the key; where it is not set, none is sent.
        max_tokens: openai, local: longest answer in tokens; LLaVA-server always uses 64.
        concurrency: openai, llava-server: requests under way at once.
        timeout: openai, llava-server: seconds that one request may take.
        patience: openai, llava-server: seconds for which a server that is away or overloaded is asked again.
        dtype: local: number format of the weights; `auto` is the one that they were saved in.
    """

    judge: str = "openai"
    endpoint: str | None = None
    model: str | None = None
    api_key_env: str = KEY_VARIABLE
    max_tokens: int = 64
    concurrency: int = 8
    timeout: float = 120.0
    patience: float = 600.0
    dtype: str = "auto"


class AskFn(Protocol):
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
        """Return one answer per image."""
        ...


class RecallFn(Protocol):
    """Asks one question about each image of a batch and scores the answers itself.

    Args:
        images: uint8 [B, 3, H, W], RGB, on any device.
        question: The question.
        references: B texts that the answers are compared with.

    Returns:
        B BERTScore recalls.

    Raises:
        RewardError: If the judge gives no answer.
    """

    def __call__(self, images: Tensor, question: str, references: Sequence[str], /) -> list[float]:
        """Return one recall per image."""
        ...


@dataclass(frozen=True)
class Judge:
    """A kind of judge.

    Every function takes checked settings and the name of the reward, for messages.

    Attributes:
        kind: Its name, which the setting `judge` has.
        make: Makes what answers; a model in this process is loaded. Raises `ConfigError` for an address from the
            environment that is none, and `RewardError` where the judge cannot run here.
        find_fault: From settings to why this judge cannot have them, in the words after the reward's name; None where
            it can.
        find_obstacle: Why it cannot answer here now, without loading or asking it; None where nothing is known.
        revise: What identifies the answers: a digest of weights, or the kind of server and the model's name.
        make_recall: Makes what scores its own answers; None: it does not.
    """

    kind: str
    make: Callable[[JudgeSettings, str], AskFn]
    find_fault: Callable[[JudgeSettings], str | None]
    find_obstacle: Callable[[JudgeSettings, str], str | None]
    revise: Callable[[JudgeSettings, str], str]
    make_recall: Callable[[JudgeSettings, str], RecallFn] | None = None


JUDGE_DEFAULTS: dict[str, Any] = asdict(JudgeSettings())
"""Every setting of a judge with its default, to be merged into those of a reward."""

JUDGE_PLACEMENT = frozenset({"endpoint", "api_key_env", "concurrency", "timeout", "patience"})
"""The settings that say where a judge is and how it is reached."""


def read_settings(values: Mapping[str, Any], reward: str) -> tuple[Judge, JudgeSettings]:
    """Pick the settings of the judge out of those of a reward, and check them; return them with the judge.

    Raises:
        ConfigError: If a value is impossible.
    """
    settings = JudgeSettings(**{field.name: values[field.name] for field in fields(JudgeSettings)})
    fault = _find_fault(settings) or JUDGES[settings.judge].find_fault(settings)
    if fault:
        raise ConfigError(f"reward {reward!r}: {fault}")
    return JUDGES[settings.judge], settings


def _find_fault(settings: JudgeSettings) -> str | None:
    """Return what is wrong with a value, whichever the judge; None where nothing is."""
    for name, known in (("judge", list_kinds(__path__)), ("dtype", DTYPES)):
        if getattr(settings, name) not in known:
            return f"{name} {getattr(settings, name)!r} must be one of {', '.join(known)}"
    for name in ("max_tokens", "concurrency"):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return f"{name} {value!r} must be a whole number above 0"
    for name, least in (("timeout", "above 0"), ("patience", "of 0 or more")):
        value = getattr(settings, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not number or (value == 0 and least == "above 0"):
            return f"{name} {value!r} must be a number of seconds {least}"
    if not isinstance(settings.api_key_env, str) or not settings.api_key_env.isidentifier():
        # Whoever puts the key itself here must not find it in a log.
        return "api_key_env must be the name of an environment variable"
    if settings.model is not None and (not isinstance(settings.model, str) or not settings.model):
        return f"model {settings.model!r} must be a name"
    return None


JUDGES: Mapping[str, Judge] = discover(__name__, __path__, "JUDGE", Judge)
"""Every judge, by its kind."""
