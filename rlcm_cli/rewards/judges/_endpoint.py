"""The address of a judge behind a server, from its settings or from the environment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.judges import ENDPOINT_VARIABLE, JudgeSettings


def find_endpoint(settings: JudgeSettings, reward: str) -> str:
    """Return the address of the server, without a slash at its end.

    One of the two must be set. Raises `ConfigError` where the environment variable does not hold an address.
    """
    if settings.endpoint:
        return settings.endpoint.rstrip("/")
    address = os.environ[ENDPOINT_VARIABLE]
    if fault := find_address_fault(address, ENDPOINT_VARIABLE):
        raise ConfigError(f"reward {reward!r}: {fault}")
    return address.rstrip("/")


def find_missing_endpoint(settings: JudgeSettings, reward: str, *, example: str) -> str | None:
    """Return how to set an address where none is set; None where one is."""
    if settings.endpoint or os.environ.get(ENDPOINT_VARIABLE):
        return None
    return (
        f"no judge is set; start one and set {ENDPOINT_VARIABLE}={example} or "
        f"--set reward_settings.{reward}.endpoint={example}"
    )


def find_address_fault(address: object, name: str) -> str | None:
    """Return why a value is not the address of a judge, without repeating it: it may hold a password."""
    wrong = not isinstance(address, str)
    if isinstance(address, str):
        try:
            parts = urlsplit(address)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port == 0)
            wrong = wrong or "@" in parts.netloc or bool(parts.query) or bool(parts.fragment) or not address.isascii()
            wrong = wrong or any(character.isspace() for character in address)
        except ValueError:
            wrong = True
    if not wrong:
        return None
    return (
        f"{name} must be an address such as http://host:8000/v1, without a user name, a password or a query; a key "
        "belongs in the variable that api_key_env names"
    )


def find_endpoint_fault(settings: JudgeSettings) -> str | None:
    """Return why the setting `endpoint` is not an address; None where it is one, or not set."""
    return None if settings.endpoint is None else find_address_fault(settings.endpoint, "endpoint")
