"""The rewards by name, and what identifies a reward with its settings on disk."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.compressibility import compressibility, incompressibility
from rlcm_cli.rewards.contract import RewardFn
from rlcm_cli.rewards.recognition import DEFAULT_FLOOR, EMBEDDED_JUDGE, judge_digest, recognition


@dataclass(frozen=True)
class RewardEntry:
    """A reward that can be named in a configuration.

    Attributes:
        factory: Makes the reward function; takes the settings as keyword arguments.
        description: One line for people.
        value_range: Range and unit of its values, for people.
        needs: What it needs besides the package, for people.
        version: Raised whenever the same image and settings would get another value.
        defaults: Every setting with its default.
        judge_digest: For a reward with a model: from the settings to a digest of the model's files, which
            stands for the setting `model`.
    """

    factory: Callable[..., RewardFn]
    description: str
    value_range: str
    needs: str
    version: int = 1
    defaults: Mapping[str, Any] = field(default_factory=dict)
    judge_digest: Callable[[Mapping[str, Any]], str] | None = None


REWARDS: dict[str, RewardEntry] = {
    "compressibility": RewardEntry(
        compressibility,
        description="small as a JPEG: the negative of its size at quality 95",
        value_range="below 0, kB (1000 bytes)",
        needs="nothing",
    ),
    "incompressibility": RewardEntry(
        incompressibility,
        description="large as a JPEG: its size at quality 95",
        value_range="above 0, kB (1000 bytes)",
        needs="nothing",
    ),
    "recognition": RewardEntry(
        recognition,
        description="log-probability that an image classifier gives to the label that the prompt names",
        value_range="floor to 0, nats",
        needs="the embedded judge, or a transformers image classifier (model: a folder or hub id)",
        defaults={"model": EMBEDDED_JUDGE, "floor": DEFAULT_FLOOR},
        judge_digest=judge_digest,
    ),
}


@dataclass(frozen=True)
class RewardSpec:
    """A reward's name and those of its settings that differ from the defaults.

    Making one checks nothing; `resolved`, `digest`, `directory` and `load_reward` do.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolved(self) -> dict[str, Any]:
        """All settings, defaults filled in.

        Raises:
            ConfigError: If the reward or a setting is unknown.
        """
        defaults = _entry(self.name).defaults
        for key in self.settings:
            if key not in defaults:
                raise ConfigError(
                    f"reward {self.name!r} has no setting {key!r}; " + _choices(key, defaults, "settings")
                )
        return {**defaults, **self.settings}

    @property
    def slug(self) -> str:
        """The name in lower-case letters, digits, '-' and '_' alone, for a directory."""
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")

    @cached_property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 over canonical JSON of name, version, settings and judge.

        Two specs share it only if they give the same values. The files of a judge stand for its path, so the
        digest is the same on machines that keep the judge in different places; a judge on the hub is
        downloaded for it.

        Raises:
            ConfigError: If the reward or a setting is unknown.
            RewardError: If the judge cannot be had.
        """
        entry, settings = _entry(self.name), self.resolved
        identity: dict[str, object] = {"name": self.name, "version": entry.version}
        if entry.judge_digest:
            identity["judge"] = entry.judge_digest(settings)
            del settings["model"]
        identity["settings"] = settings
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def directory(self) -> str:
        """Name of the directory that holds this reward's values: slug and digest."""
        return f"{self.slug}-{self.digest}"


def load_reward(spec: RewardSpec) -> RewardFn:
    """Make a reward function, loading the model behind it if there is one.

    Raises:
        ConfigError: If the reward or a setting is unknown, or a setting has an impossible value.
        RewardError: If the reward cannot run here.
    """
    return _entry(spec.name).factory(**spec.resolved)


def _entry(name: str) -> RewardEntry:
    if name not in REWARDS:
        raise ConfigError(f"there is no reward {name!r}; " + _choices(name, REWARDS, "rewards"))
    return REWARDS[name]


def _choices(name: str, known: Mapping[str, object], kind: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {nearest[0]!r}? " if nearest else "") + f"known {kind}: {', '.join(known) or 'none'}"
