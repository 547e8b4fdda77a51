"""The rewards by name, and what identifies a reward with its settings on disk."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards import (
    alignment,
    clip,
    composition,
    compressibility,
    diversity,
    ocr,
    pixels,
    recognition,
    symmetry,
)
from rlcm_cli.rewards.contract import Reward, RewardEntry

REWARDS: dict[str, RewardEntry] = {
    **compressibility.ENTRIES,
    **symmetry.ENTRIES,
    **pixels.ENTRIES,
    **recognition.ENTRIES,
    **clip.ENTRIES,
    **alignment.ENTRIES,
    **diversity.ENTRIES,
    **composition.ENTRIES,
    **ocr.ENTRIES,
}


@dataclass(frozen=True)
class RewardSpec:
    """A reward's name and those of its settings that differ from the defaults.

    The name is one of `REWARDS`, the address of a reward server (`http://host:8000/NAME`), or a function of
    yours (`path/to/file.py:function`, `package.module:function`). Making a spec checks nothing; `resolved`,
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
        """The name, of an address or a function its last part, in characters that a directory may have."""
        last = re.split(r"[/:]", self.name)[-1] if is_address(self.name) or is_code(self.name) else self.name
        return re.sub(r"[^a-z0-9_]+", "-", last.lower()).strip("-") or "reward"

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 over canonical JSON of name, version and settings but `placement`.

        A function of the configuration alone: whoever reads the rewards needs neither weights nor server. What
        the settings point at is digested in `Reward.revision`, which is stored beside the values.

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


def find_entry(name: str) -> RewardEntry:
    """Return what is known of a reward. Raises `ConfigError` where there is none of that name."""
    if name in REWARDS:
        return REWARDS[name]
    if is_address(name):
        from rlcm_cli.rewards.remote import remote_entry

        return remote_entry(name)
    if is_code(name):
        from rlcm_cli.rewards.custom import custom_entry

        return custom_entry(name)
    file = Path(f"{name.removesuffix('.py')}.py")
    own = f"for the function in {file} write {file}:FUNCTION; " if file.is_file() else ""
    raise ConfigError(
        f"there is no reward {name!r}; {own}{_choices(name, REWARDS, 'rewards')}; one of yours is FILE.py:FUNCTION"
    )


def is_address(name: str) -> bool:
    """Tell whether a reward's name is the address of a server."""
    return name.startswith(("http://", "https://"))


def is_code(name: str) -> bool:
    """Tell whether a reward's name names Python code: a file or a module, a colon, a function."""
    return not is_address(name) and ":" in name


def load_reward(spec: RewardSpec) -> Reward:
    """Load a reward with the model behind it, if there is one. Code is run: check whose it is (`is_code`) first.

    Raises:
        ConfigError: If the reward or a setting is unknown, or a setting has an impossible value.
        RewardError: If the reward cannot run here.
    """
    entry, settings = spec.entry, spec.resolved
    function = entry.factory(**settings)
    set_level = getattr(function, "set_level", entry.set_level)
    return Reward(
        name=spec.name,
        function=function,
        set_level=set_level,
        neural=entry.neural,
        differentiable=getattr(function, "differentiable", entry.differentiable) and not set_level,
        revision=entry.revise(settings) if entry.revise else "",
    )


def _choices(name: str, known: Mapping[str, object], kind: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {nearest[0]!r}? " if nearest else "") + f"known {kind}: {', '.join(known) or 'none'}"
