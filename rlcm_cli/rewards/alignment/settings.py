"""The settings of a judge, checked, and the address that may also come from the environment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from rlcm_cli.errors import ConfigError, RewardError

ENDPOINT_VARIABLE = "RLCM_JUDGE_ENDPOINT"
KEY_VARIABLE = "RLCM_JUDGE_API_KEY"
LOCAL_MODEL = "llava-hf/llava-1.5-7b-hf"

JUDGES = ("openai", "llava-server", "local")
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class JudgeSettings:
    """Who looks at the images, and how it is asked.

    Attributes:
        judge: `openai`, any server of the OpenAI protocol (vLLM, SGLang, llama.cpp, Ollama, a provider);
            `llava-server`, kvablack/LLaVA-server; `local`, a transformers image-text-to-text model in this process.
        endpoint: Address of a server, such as `http://host:8000/v1` (openai) or `http://host:8085` (llava-server);
            None takes it from the environment variable RLCM_JUDGE_ENDPOINT.
        model: openai: the name of a model that the server knows. local: a folder or hub id, None for LLaVA 1.5 7B.
        api_key_env: openai: the environment variable that holds the key; where it is unset, none is sent.
        max_tokens: openai, local: longest answer in tokens; 64 is fixed in LLaVA-server.
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

    def check(self, reward: str) -> None:
        """Raise `ConfigError` for a value that cannot be."""
        for name, known in (("judge", JUDGES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"reward {reward!r}: {name} {getattr(self, name)!r} must be one of {', '.join(known)}"
                )
        for name in ("max_tokens", "concurrency"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"reward {reward!r}: {name} {value!r} must be a whole number above 0")
        for name, least in (("timeout", "above 0"), ("patience", "of 0 or more")):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if not number or (value == 0 and least == "above 0"):
                raise ConfigError(f"reward {reward!r}: {name} {value!r} must be a number of seconds {least}")
        if not isinstance(self.api_key_env, str) or not self.api_key_env.isidentifier():
            # Whoever puts the key itself here must not find it in a log.
            raise ConfigError(f"reward {reward!r}: api_key_env must be the name of an environment variable")
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ConfigError(f"reward {reward!r}: model {self.model!r} must be a name")
        if self.judge == "llava-server" and self.model is not None:
            raise ConfigError(f"reward {reward!r}: a LLaVA-server serves one model; leave model unset")
        if self.judge == "local" and self.endpoint is not None:
            raise ConfigError(f"reward {reward!r}: a local judge has no endpoint; leave it unset or choose a server")
        if self.endpoint is not None:
            _check_address(self.endpoint, "endpoint", reward)

    def find_endpoint(self, reward: str) -> str:
        """Return the address of the server, without a slash at its end.

        Raises:
            ConfigError: If the environment variable holds no address.
            RewardError: If neither the setting nor the variable is set, or the model's name is missing.
        """
        if obstacle := self.server_obstacle(reward):
            raise RewardError(f"reward {reward!r}: {obstacle}")
        address = self.endpoint or os.environ[ENDPOINT_VARIABLE]
        _check_address(address, "endpoint" if self.endpoint else ENDPOINT_VARIABLE, reward)
        return address.rstrip("/")

    def server_obstacle(self, reward: str) -> str | None:
        """Say what a judge behind an address still needs; None where that is nothing."""
        if not self.endpoint and not os.environ.get(ENDPOINT_VARIABLE):
            example = "http://127.0.0.1:8085" if self.judge == "llava-server" else "http://127.0.0.1:8000/v1"
            return (
                f"no judge is set; start one and set {ENDPOINT_VARIABLE}={example} or "
                f"--set reward_settings.{reward}.endpoint={example}"
            )
        if self.judge == "openai" and self.model is None:
            return f"no model is set; --set reward_settings.{reward}.model=NAME, a model that the judge serves"
        return None


JUDGE_DEFAULTS: dict[str, Any] = asdict(JudgeSettings())
"""Every setting of a judge with its default, to be merged into those of a reward."""

JUDGE_PLACEMENT = frozenset({"endpoint", "api_key_env", "concurrency", "timeout", "patience"})
"""The settings that say where a judge is and how it is reached."""


def judge_settings(settings: Mapping[str, Any], reward: str) -> JudgeSettings:
    """Pick the settings of the judge out of those of a reward, and check them.

    Raises:
        ConfigError: If a value cannot be.
    """
    judge = JudgeSettings(**{field.name: settings[field.name] for field in fields(JudgeSettings)})
    judge.check(reward)
    return judge


def _check_address(address: object, name: str, reward: str) -> None:
    wrong = not isinstance(address, str)
    if isinstance(address, str):
        try:
            parts = urlsplit(address)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port == 0)
            wrong = wrong or "@" in parts.netloc or bool(parts.query) or bool(parts.fragment) or not address.isascii()
            wrong = wrong or any(character.isspace() for character in address)
        except ValueError:
            wrong = True
    if wrong:
        # The address is not repeated: it may hold a password.
        raise ConfigError(
            f"reward {reward!r}: {name} must be an address such as http://host:8000/v1, without a user name, a "
            "password or a query; a key belongs in the variable that api_key_env names"
        )
