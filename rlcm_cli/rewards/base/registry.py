"""A reward by its name: what is known of it, what identifies it on disk, and how it is loaded."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.base.contract import Reward, RewardEntry
from rlcm_cli.rewards.base.weights import join_digests


@dataclass(frozen=True)
class RewardSpec:
    """A reward's name and those of its settings that differ from the defaults.

    The name is one of `REWARDS`, the address of a reward server (`http://host:8000/NAME`), or a function of
    your own (`path/to/file.py:function`, `package.module:function`). Making a spec checks nothing; `resolved`,
    `digest`, `directory` and `load_reward` do.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> RewardEntry:
        """What is known of the reward.

        Raises:
            ConfigError: If there is no such reward.
        """
        return find_entry(self.name)

    @property
    def resolved(self) -> dict[str, Any]:
        """All settings, defaults filled in.

        Raises:
            ConfigError: If the reward or a setting is unknown.
        """
        defaults = self.entry.defaults
        for key in self.settings:
            if key not in defaults:
                raise ConfigError(
                    f"reward {self.name!r} has no setting {key!r}; " + _choices(key, defaults, "settings")
                )
        return {**defaults, **self.settings}

    @property
    def slug(self) -> str:
        """The name, or the last part of an address or a function, in characters that a directory may have."""
        last = re.split(r"[/:]", self.name)[-1] if is_address(self.name) or is_code(self.name) else self.name
        return re.sub(r"[^a-z0-9_]+", "-", last.lower()).strip("-") or "reward"

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 over canonical JSON of name, version and settings except `placement`.

        A function of the configuration only: whoever reads the rewards needs neither weights nor server. What
        the settings point at is digested in `Reward.revision`, which is stored next to the values.

        Raises:
            ConfigError: If the reward or a setting is unknown.
        """
        entry = self.entry
        settings = {key: value for key, value in self.resolved.items() if key not in entry.placement}
        identity = {"name": self.name, "version": entry.version, "settings": settings}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def directory(self) -> str:
        """Name of the directory that holds this reward's values: slug and digest."""
        return f"{self.slug}-{self.digest}"

    def find_obstacle(self) -> str | None:
        """Return why the reward cannot run here now, with what to do; None where it can.

        Loads nothing, and does not ask the hub.

        Raises:
            ConfigError: If the reward or a setting is unknown.
        """
        entry, settings = self.entry, self.resolved
        for name, weights in entry.weights.items():
            if missing := weights.find_obstacle(settings[name], reward=self.name, setting=name):
                return missing
        return entry.obstacle(settings) if entry.obstacle else None

    def find_paths(self) -> dict[str, Path]:
        """Return where the weights are, by the setting that names them; they are downloaded where they are not here.

        Raises:
            ConfigError: If the reward or a setting is unknown, or a setting does not name weights.
            RewardError: If there is no way to get them.
        """
        settings = self.resolved
        return {
            name: weights.find(settings[name], reward=self.name, setting=name)
            # Those declared last are small: a mistake in them shows before gigabytes are fetched.
            for name, weights in reversed([*self.entry.weights.items()])
        }

    def revise(self, paths: Mapping[str, Path]) -> str:
        """Return a digest of the weights, the code or the service behind the reward; empty where there is nothing.

        Args:
            paths: Where the weights are, as `find_paths` returns them.

        Raises:
            RewardError: If it cannot be read or asked.
        """
        entry = self.entry
        digests = [weights.digest(paths[name], reward=self.name) for name, weights in entry.weights.items()]
        return join_digests([*digests, entry.revise(self.resolved)] if entry.revise else digests)


def find_entry(name: str) -> RewardEntry:
    """Return what is known of a reward. Raises `ConfigError` where there is none of that name."""
    from rlcm_cli.rewards import REWARDS

    if name in REWARDS:
        return REWARDS[name]
    if is_address(name):
        from rlcm_cli.rewards.remote import remote_entry

        return remote_entry(name)
    if is_code(name):
        from rlcm_cli.rewards.custom.functions import custom_entry

        return custom_entry(name)
    file = Path(f"{name.removesuffix('.py')}.py")
    own = f"for the function in {file} write {file}:FUNCTION; " if file.is_file() else ""
    raise ConfigError(
        f"there is no reward {name!r}; {own}{_choices(name, sorted(REWARDS), 'rewards')}; a function of your own is "
        "FILE.py:FUNCTION"
    )


def is_address(name: str) -> bool:
    """Return whether a reward's name is the address of a server."""
    return name.startswith(("http://", "https://"))


def is_code(name: str) -> bool:
    """Return whether a reward's name names Python code: a file or a module, a colon, a function."""
    return not is_address(name) and ":" in name


def load_reward(spec: RewardSpec) -> Reward:
    """Load a reward with the model behind it, if there is one. Code of the user's is run: check `is_code` first.

    Raises:
        ConfigError: If the reward or a setting is unknown, or a setting has an impossible value.
        RewardError: If the reward cannot run here.
    """
    entry, settings = spec.entry, spec.resolved
    if entry.check:
        entry.check(settings)
    paths = spec.find_paths()
    function = entry.factory(**settings | paths)
    set_level = getattr(function, "set_level", entry.set_level)
    return Reward(
        name=spec.name,
        function=function,
        set_level=set_level,
        neural=entry.neural,
        differentiable=getattr(function, "differentiable", entry.differentiable) and not set_level,
        revision=spec.revise(paths),
        by_people=getattr(function, "by_people", False),
    )


def _choices(name: str, known: Collection[str], kind: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {nearest[0]!r}? " if nearest else "") + f"known {kind}: {', '.join(known) or 'none'}"
