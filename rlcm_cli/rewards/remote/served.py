"""The rewards that a server has loaded, and what identifies each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.base.contract import Reward
from rlcm_cli.rewards.base.registry import RewardSpec, load_reward

_RESERVED = ("health", "metrics", "docs", "redoc")
_SECRET = re.compile(r"(^|_)(token|secret|password|credentials?|api_?key)$", re.IGNORECASE)


@dataclass(frozen=True)
class ServedReward:
    """A reward that is loaded, with what identifies it.

    Attributes:
        spec: Its name and settings.
        reward: Scores.
        revision: Digest of all that its numbers depend on.
    """

    spec: RewardSpec
    reward: Reward
    revision: str

    @property
    def name(self) -> str:
        """Its name in the address."""
        return self.spec.slug


def load_served(specs: Sequence[RewardSpec]) -> list[ServedReward]:
    """Load rewards to serve.

    Raises:
        ConfigError: If one is unknown or set wrongly, or two would have the same address.
        RewardError: If one cannot run here.
    """
    slugs = [spec.slug for spec in specs]
    for slug in slugs:
        if slug in _RESERVED or slugs.count(slug) > 1:
            raise ConfigError(f"two things would have the address /{slug} on the server; serve them apart")
    served = []
    for spec in specs:
        reward = load_reward(spec)
        if reward.by_people:
            raise ConfigError(f"reward {spec.name!r} is given by people, not by a server; `rlcm vote RUN` asks them")
        served.append(ServedReward(spec, reward, _revision(spec, reward)))
    return served


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that may be shown: without those that are secret by their name or hold a password."""
    return {
        key: value
        for key, value in settings.items()
        if not _SECRET.search(key) and not (isinstance(value, str) and re.search(r"://[^/]*@", value))
    }


def _revision(spec: RewardSpec, reward: Reward) -> str:
    settings = public_settings(spec.resolved)
    identity = {
        "name": spec.slug,
        "version": spec.entry.version,
        # A file or folder here has another place elsewhere; what is in it is digested in the reward's revision.
        "settings": {
            key: value for key, value in settings.items() if not (isinstance(value, str) and _is_path(value))
        },
        "revision": reward.revision,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
