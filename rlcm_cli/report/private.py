"""What is left out of everything that others read: folders, users, addresses and secrets of this machine."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
# Where a POSIX or Windows path begins at a root, a home, or above: at the start of a text, and within it, as after the
# scheme of `csv:/home/ann/table.csv:caption`. A slash between words ("cat/dog", "OWNER/NAME") begins no path.
ELSEWHERE = re.compile(
    r"(?<![\w.…~)\]/\\-])(?:[a-z]:[\\/]|~[\w.-]*[\\/]|[\\/]+(?=[^\s\\/])|(?:[^\s:\\/]+[\\/])*\.\.?[\\/])",
    re.IGNORECASE,
)
IN_SENTENCE = re.compile(rf"{ELSEWHERE.pattern}[^\s'\"`,;)]*", re.IGNORECASE)
HOME = re.compile(r"(?:[a-z]:)?[\\/](?:(?:home|users)[\\/][^\\/]*|root)|~[\w.-]*", re.IGNORECASE)
# Of a secret, or of a machine.
SECRET = re.compile(r"token|secret|password|api_?key$|authorization|address|endpoint|host$|url", re.IGNORECASE)
WITHHELD = "(withheld)"
SERVER = "server (address withheld)"


def withhold(value: Any) -> Any:
    """Return a nested value without folders of paths, addresses, and what keys of secrets and machines hold."""
    if isinstance(value, dict):
        return {
            withhold(key): WITHHELD if item is not None and SECRET.search(key) else withhold(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [withhold(item) for item in value]
    return withhold_text(value) if isinstance(value, str) else value


def withhold_text(text: str) -> str:
    """Return a setting without the folders of the path that it is or ends with, and without addresses.

    A path may hold spaces, so it reaches to the end of the text.

    >>> withhold_text("csv:/home/ann/my texts/prompts.csv:caption"), withhold_text("https://ann:pw@host/score")
    ('csv:…/prompts.csv:caption', 'server (address withheld)')
    """
    text = ADDRESS.sub(SERVER, text)
    found = ELSEWHERE.search(text)
    start = found.start() if found else 0
    path = text[start:].rstrip("\\/")
    if HOME.fullmatch(path) or path == os.path.expanduser("~"):
        return text[:start] + "…"
    return f"{text[:start]}…/{_last_part(path)}" if found else text


def withhold_sentence(text: str) -> str:
    """Return a line of text without the folders of the paths and without the addresses in it.

    >>> withhold_sentence("/home/ann/run/config.json: is damaged; see https://host/x")
    '…/config.json: is damaged; see server (address withheld)'
    """
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = text.replace(home, "~")  # whose name may hold spaces
    return IN_SENTENCE.sub(lambda path: withhold_text(path[0]), ADDRESS.sub(SERVER, text))


def name_reward(reward: str) -> str:
    """Return a reward's display name: of a file the last part of its path, of a server what it serves.

    >>> name_reward("/home/ann/rewards.py:neat"), name_reward("https://ann:pw@host:8000/hps_v2?key=1")
    ('rewards.py:neat', 'hps_v2 (served)')
    """
    if ADDRESS.match(reward):
        served = urlsplit(reward.partition(",")[0]).path.rstrip("/").rpartition("/")[2]
        return f"{served} (served)" if served else "served reward"
    return _last_part(withhold_text(reward))


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path)[-1]
