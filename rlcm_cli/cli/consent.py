"""What a configuration requests from this machine and its user, and whether the user has agreed.

A run or a file for --config may come from elsewhere, and data must not choose which code runs, which host receives
images or a token, which environment variable is read as a key, or which local file is opened. The user has to name
each of these: on the command line, in the environment, or earlier on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from rlcm_cli.runs.run import Run

KEY_SETTING, ENDPOINT_SETTING = "api_key_env", "endpoint"
RAY_VARIABLE = "RAY_ADDRESS"


@dataclass(frozen=True)
class Wish:
    """One thing that a configuration requests.

    Attributes:
        kind: What it is.
        text: As written in the configuration: a reward's name, an address, a variable, a path.
        setting: Its key in the configuration.
        identity: What becomes trusted on this machine once the user has named it; empty: it cannot.
    """

    kind: Literal["code", "host", "key", "file"]
    text: str
    setting: str
    identity: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What the user has agreed to on this command line.

    Attributes:
        named: All texts in its settings and options.
        code: `--allow-code`.
        hosts: `--allow-host`.
    """

    named: Collection[str]
    code: bool = False
    hosts: Sequence[str] = ()


def named_texts(assignments: Sequence[str], *options: Any) -> set[str]:
    """Return all texts in the `--set` options and other options of a command line, including keys of tables."""
    from rlcm_cli.config import parse_assignment, split_key

    texts = set(_texts(options))
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        texts |= {*split_key(key), *_texts(value)}
    return texts | {os.path.expanduser(text) for text in texts if text.startswith("~")}


def permit(
    run: Run, given: Given, *, rewards: Iterable[str] | None = None, ray: bool = False, of_a_run: bool = False
) -> list[str]:
    """Raise `ConfigError` for the first thing that a configuration requests without the user's agreement.

    What the command line names is trusted on this machine from now on.

    Args:
        run: A run directory, or one about to be created, with its configuration.
        given: What the command line says.
        rewards: Those about to be loaded; None: all.
        ray: Whether a cluster is about to be joined.
        of_a_run: The configuration comes from another run.

    Returns:
        One line for each newly trusted thing.
    """
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.store.trust import is_trusted, trust, trust_folder

    lines = []
    for wish in find_wishes(run, rewards=rewards, ray=ray, of_a_run=of_a_run):
        if not _is_named(wish, given) and not (wish.identity and is_trusted(*wish.identity)):
            raise ConfigError(f"{run.layout.root}: {_refusal(wish)}")
        if wish.identity and trust(*wish.identity) and wish.kind == "code":
            lines.append(f"{wish.text} is now trusted on this machine in its current form ({trust_folder()})")
    return lines


def find_wishes(
    run: Run, *, rewards: Iterable[str] | None = None, ray: bool = False, of_a_run: bool = False
) -> Iterator[Wish]:
    """List what a run's configuration requests; arguments as in `permit`."""
    from rlcm_cli.rewards import is_address, is_code
    from rlcm_cli.rewards.remote import split_addresses

    config, of_a_run = run.config, of_a_run or run.layout.config.exists()
    for name in config.reward_names() if rewards is None else rewards:
        if is_code(name):
            yield Wish("code", name, "rewards", _identify_code(name))
        if is_address(name):
            yield from (_host(address, "rewards") for address in split_addresses(name))
        settings = config.reward_settings.get(name, {})
        for key, value in settings.items():
            yield from _wishes_of_setting(name, key, value, settings, of_a_run)
    if ray and config.ray.address not in (None, "auto"):
        yield _host(f"ray://{config.ray.address}", "ray.address")


def _wishes_of_setting(
    reward: str, key: str, value: Any, settings: Mapping[str, Any], of_a_run: bool
) -> Iterator[Wish]:
    from rlcm_cli.rewards.judges import KEY_VARIABLE

    setting = f"reward_settings.{reward}.{key}"
    if key == KEY_SETTING:
        if value != KEY_VARIABLE:
            yield Wish("key", str(value), setting, ("key", str(value), _origin(str(settings.get(ENDPOINT_SETTING)))))
        return
    for text in _texts(value):
        if "://" in text or (key == ENDPOINT_SETTING and text):
            yield _host(text, setting)
        elif of_a_run and (path := _as_path(text)):
            yield Wish("file", text, setting, ("file", str(path)))


def _host(address: str, setting: str) -> Wish:
    return Wish("host", address, setting, ("host", _origin(address)))


def _is_named(wish: Wish, given: Given) -> bool:
    if wish.kind == "code":
        return given.code or wish.text in given.named
    if wish.kind == "host":
        origin = _origin(wish.text)
        texts = [*given.named, *(os.environ.get(name, "") for name in _host_variables())]
        known = [address.strip() for text in texts for address in text.split(",")]  # servers of one reward
        spelt = {_origin(f"ray://{text}" if origin.startswith("ray:") else text) for text in known}
        host = origin.partition("://")[2]
        return origin in spelt or any(_host_of(allowed) in (host, host.rpartition(":")[0]) for allowed in given.hosts)
    return wish.text in given.named


def _refusal(wish: Wish) -> str:
    if wish.kind == "code":
        return f"the configuration has a reward that runs code, {wish.text}; read it, then allow it with --allow-code"
    if wish.kind == "host":
        host = _origin(wish.text).partition("://")[2]
        return (
            f"the configuration ({wish.setting}) would send images, and a token if one is set, to {wish.text!a}, an "
            f"address that only the configuration names; if you trust it, allow it with --allow-host {host}"
        )
    what = "reads the environment variable" if wish.kind == "key" else "reads the local file or folder"
    return (
        f"the configuration {what} {wish.text!a}, which only the configuration names; if you trust it, name it too: "
        f"--set '{_assignment(wish)}'"
    )


def _assignment(wish: Wish) -> str:
    from rlcm_cli.toml_files import write_key

    head, _, key = wish.setting.rpartition(".")
    table, _, reward = head.partition(".")
    return f"{write_key(table, reward, key)}={wish.text}"


def _origin(address: str) -> str:
    """Return scheme, host and port of an address; if it is not an address, the text itself."""
    try:
        parts = urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return address
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.scheme and parts.hostname else address


def _host_of(allowed: str) -> str:
    """Return HOST or HOST:PORT from a value of --allow-host."""
    return (_origin(allowed).partition("://")[2] if "://" in allowed else allowed).lower()


def _host_variables() -> tuple[str, ...]:
    from rlcm_cli.rewards.judges import ENDPOINT_VARIABLE

    return (ENDPOINT_VARIABLE, RAY_VARIABLE)


def _identify_code(name: str) -> tuple[str, ...]:
    """Identify code by its path and digest, so that only this version is trusted; empty if it is not here."""
    from rlcm_cli.errors import RlcmError
    from rlcm_cli.rewards.custom.functions import code_source, digest_code

    try:
        return ("code", str(code_source(name)), digest_code(name))
    except RlcmError:
        return ()


def _as_path(text: str) -> Path | None:
    """Return the path that a text names if it exists; what is in the current directory needs no permission."""
    try:
        path = Path(text).expanduser().resolve()
        return path if path.exists() and not path.is_relative_to(Path.cwd().resolve()) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield str(key)
            yield from _texts(below)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
