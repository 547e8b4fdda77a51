"""What a report leaves out of a configuration: it is read elsewhere, by others."""

from __future__ import annotations

import re
from typing import Any

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
# A POSIX or Windows path that starts at a root, a home, or above.
ELSEWHERE = re.compile(r"^(?:[a-z]:[\\/]|[\\/~]|\.\.?[\\/])", re.IGNORECASE)
# Of a secret, or of a machine.
SECRET = re.compile(r"token|secret|password|api_?key$|authorization|address|endpoint|host$|url", re.IGNORECASE)
WITHHELD = "(withheld)"


def withhold(value: Any) -> Any:
    """Give a nested value without the folders of paths, addresses, and what keys of secrets and machines hold."""
    if isinstance(value, dict):
        return {
            withhold(key): WITHHELD if item is not None and SECRET.search(key) else withhold(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [withhold(item) for item in value]
    return withhold_text(value) if isinstance(value, str) else value


def withhold_text(text: str) -> str:
    """Give a path's last part, and of an address that it is one.

    >>> withhold_text("/home/ann/prompts.txt"), withhold_text("https://ann:pw@host/score")
    ('…/prompts.txt', 'server (address withheld)')
    """
    if ADDRESS.match(text):
        return "server (address withheld)"
    if ELSEWHERE.match(text):
        return "…/" + (re.split(r"[\\/]", text.rstrip("\\/"))[-1] or "")
    return text
