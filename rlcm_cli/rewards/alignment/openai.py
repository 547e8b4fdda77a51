"""A judge behind the OpenAI protocol: vLLM, SGLang, llama.cpp, Ollama or a provider."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.alignment.images import encode_png, to_pillow
from rlcm_cli.rewards.alignment.settings import JudgeSettings
from rlcm_cli.rewards.alignment.transport import JudgeClient

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_EXCERPT = 100
"""Characters that an error shows of an answer."""


class OpenAIJudge:
    """Asks with one POST to `{endpoint}/chat/completions` an image.

    The image goes as a data URI of a PNG, so that the judge sees every pixel that was drawn; temperature 0. The
    key is read from the environment at each call and kept nowhere.

    Raises:
        ConfigError: If the address cannot be.
        RewardError: If the address or the model is not set.
    """

    def __init__(self, settings: JudgeSettings, reward: str) -> None:
        self._url = settings.find_endpoint(reward) + "/chat/completions"
        self._settings = settings
        self._reward = reward

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer one question an image; see `Judge`."""
        key = self._find_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with JudgeClient(self._url, self._settings, reward=self._reward, headers=headers, secret=key) as client:
            pairs = list(zip(to_pillow(images), questions, strict=True))
            return client.map(lambda pair: self._ask(client, *pair), pairs)

    def _ask(self, client: JudgeClient, image: Image, question: str) -> str:
        picture = "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self._settings.max_tokens,
        }
        return _read_answer(client, client.post(json.dumps(body).encode(), "application/json"))

    def _find_key(self) -> str:
        name = self._settings.api_key_env
        key = os.environ.get(name, "").strip()
        if not key.isascii() or not key.isprintable():
            raise RewardError(f"reward {self._reward!r}: the key in the environment variable {name} is not plain text")
        return key


def _read_answer(client: JudgeClient, body: bytes) -> str:
    try:
        answer = json.loads(body)
    # Brackets can be nested deeper than the parser goes.
    except (ValueError, RecursionError) as error:
        raise client.malformed(f"no JSON: {_excerpt(client, body)}") from error
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise client.malformed(f"no choices[0].message.content: {_excerpt(client, body)}") from error
    if not isinstance(text, str):
        finish = choice.get("finish_reason") if isinstance(choice, dict) else None
        raise client.malformed(
            f"content is {type(text).__name__}, not text, finish_reason {client.quote(repr(finish), _EXCERPT)}; "
            "a judge that thinks first needs more max_tokens"
        )
    return text.strip()


def _excerpt(client: JudgeClient, body: bytes) -> str:
    return client.quote(body.decode(errors="replace"), _EXCERPT)
