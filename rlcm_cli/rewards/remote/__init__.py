"""Rewards over HTTP: `rlcm serve-reward` on one side, `--reward http://host:8000/NAME` on the other.

A reward with heavy or fragile dependencies gets its own environment, machine or GPU. `protocol` is what
both sides speak, `client` the reward function, `server` and what it is made of the service; importing this package
imports none of them.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, Settings

DEFAULT_TIMEOUT = 300.0
DEFAULT_PATIENCE = 600.0
LOOK_SECONDS = 5.0
"""Time that a server gets when it is only asked whether it is there."""


def remote_entry(name: str) -> RewardEntry:
    """Return what is known of the reward behind an address, without asking the server (`obstacle` and `revise` do).

    Settings: `timeout`, seconds that a server may take to answer one request; `patience`, seconds that a request
    is tried again for before the run ends.

    Args:
        name: `http://host:8000/NAME`, or several such addresses joined by commas.

    Raises:
        ConfigError: If an address is not that of a reward server.
    """
    addresses = split_addresses(name)

    def connect(timeout: float, patience: float) -> Any:
        from rlcm_cli.rewards.remote.client import connect

        return connect(addresses, timeout=timeout, patience=patience)

    def revise(settings: Settings) -> str:
        return str(connect(**settings).revision)

    def obstacle(settings: Settings) -> str | None:
        try:
            connect(timeout=min(settings["timeout"], LOOK_SECONDS), patience=0)
        except RewardError as error:
            return str(error)
        return None

    return RewardEntry(
        connect,
        description=f"what the reward server at {name} measures",
        value_range="the server's",
        needs=f"the reward server at {name}",
        settings={"timeout": DEFAULT_TIMEOUT, "patience": DEFAULT_PATIENCE},
        placement=frozenset({"timeout", "patience"}),
        revise=revise,
        obstacle=obstacle,
    )


def split_addresses(name: str) -> tuple[str, ...]:
    """Return the addresses in a reward's name. Raises `ConfigError` for one that no reward server can have."""
    addresses = tuple(part.strip().rstrip("/") for part in name.split(","))
    for address in addresses:
        try:
            parts = urlsplit(address)
            broken = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            broken = True
        # The address itself is not shown below where it may hold a password.
        if not broken and "@" in parts.netloc:
            raise ConfigError(
                f"reward server {parts.hostname}: an address with a user or password in it would be stored in the "
                "run; take it out, and put the server's token into the environment variable RLCM_REWARD_TOKEN"
            )
        if broken or not parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(
                f"reward server {address!r}: write http://HOST:PORT/NAME, for example "
                "http://127.0.0.1:8000/compressibility; several are joined by commas"
            )
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"reward server {name!r}: an address is there twice; name each server once")
    return addresses
