"""A judge behind the OpenAI protocol: vLLM, SGLang, llama.cpp, Ollama or a provider."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.judges import Judge, JudgeSettings
from rlcm_cli.rewards.judges._endpoint import find_endpoint, find_endpoint_fault, find_missing_endpoint
from rlcm_cli.rewards.judges._images import encode_png, to_pillow
from rlcm_cli.rewards.judges._server import JudgeServer

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_EXCERPT = 100
"""Characters that an error shows of an answer."""


class OpenAIJudge:
    """Sends one POST to `{endpoint}/chat/completions` per image.

    The image goes as a data URI of a PNG, so that the judge sees every pixel that was drawn; temperature 0. The
    key is read from the environment at each call and kept nowhere.

    Raises:
        ConfigError: If the address from the environment is not one.
        RewardError: If the address or the model is not set.
    """

    def __init__(self, settings: JudgeSettings, reward: str) -> None:
        if obstacle := _find_obstacle(settings, reward):
            raise RewardError(f"reward {reward!r}: {obstacle}")
        self._url = find_endpoint(settings, reward) + "/chat/completions"
        self._settings = settings
        self._reward = reward

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer one question per image; see `AskFn`."""
        key = self._find_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        server = JudgeServer(self._url, self._settings, reward=self._reward, headers=headers, secret=key)
        pairs = list(zip(to_pillow(images), questions, strict=True))
        return server.map(self._write, pairs, "application/json", lambda pair, body: _read_answer(server, body))

    def _write(self, pair: tuple[Image, str]) -> bytes:
        image, question = pair
        picture = "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self._settings.max_tokens,
        }
        return json.dumps(body).encode()

    def _find_key(self) -> str:
        name = self._settings.api_key_env
        key = os.environ.get(name, "").strip()
        if not key.isascii() or not key.isprintable():
            raise RewardError(f"reward {self._reward!r}: the key in the environment variable {name} is not plain text")
        return key


def _read_answer(server: JudgeServer, body: bytes) -> str:
    try:
        answer = json.loads(body)
    # Brackets can be nested deeper than the parser goes.
    except (ValueError, RecursionError) as error:
        raise server.malformed(f"not JSON: {_excerpt(server, body)}") from error
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise server.malformed(f"no choices[0].message.content: {_excerpt(server, body)}") from error
    if not isinstance(text, str):
        finish = choice.get("finish_reason") if isinstance(choice, dict) else None
        raise server.malformed(
            f"content is {type(text).__name__}, not text, finish_reason {server.quote(repr(finish), _EXCERPT)}; "
            "a judge that thinks first needs more max_tokens"
        )
    return text.strip()


def _excerpt(server: JudgeServer, body: bytes) -> str:
    return server.quote(body.decode(errors="replace"), _EXCERPT)


def _find_obstacle(settings: JudgeSettings, reward: str) -> str | None:
    if missing := find_missing_endpoint(settings, reward, example="http://127.0.0.1:8000/v1"):
        return missing
    if settings.model is None:
        return f"no model is set; --set reward_settings.{reward}.model=NAME, a model that the judge serves"
    return None


JUDGE = Judge(
    "openai",
    make=OpenAIJudge,
    find_fault=find_endpoint_fault,
    find_obstacle=_find_obstacle,
    revise=lambda settings, reward: f"openai:{settings.model}",
)
