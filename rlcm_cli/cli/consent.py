"""What a configuration asks of this machine and its user, and who has agreed to it.

A run or a file for --config may come from elsewhere, and data must not choose which code is run, which host is sent
images or a token, which environment variable is read as a key, or which local file is opened. Each of these has to be
named by the user: on the command line, in the environment, or on this machine before.
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
    """One thing that a configuration asks for.

    Attributes:
        kind: What it is.
        text: As the configuration has it: a reward's name, an address, a variable, a path.
        setting: Where the configuration has it.
        identity: What is trusted on this machine once the user has named it; empty: it cannot be.
    """

    kind: Literal["code", "host", "key", "file"]
    text: str
    setting: str
    identity: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What the user has agreed to on this command line.

    Attributes:
        named: Every text of its settings and options.
        code: `--allow-code`.
        hosts: `--allow-host`.
    """

    named: Collection[str]
    code: bool = False
    hosts: Sequence[str] = ()


def named_texts(assignments: Sequence[str], *options: Any) -> set[str]:
    """List every text in the `--set` options and other options of a command line, keys of tables too."""
    from rlcm_cli.config import parse_assignment, split_key

    texts = set(_texts(options))
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        texts |= {*split_key(key), *_texts(value)}
    return texts | {os.path.expanduser(text) for text in texts if text.startswith("~")}


def permit(
    run: Run, given: Given, *, rewards: Iterable[str] | None = None, ray: bool = False, of_a_run: bool = False
) -> list[str]:
    """Raise `ConfigError` for the first thing that a configuration asks for and nobody has agreed to.

    What the command line names is trusted on this machine from now on.

    Args:
        run: Its configuration, of a run directory or of one that is to be made.
        given: What the command line says.
        rewards: Those that are going to be loaded; None: all.
        ray: Whether a cluster is going to be joined.
        of_a_run: The configuration is that of another run.

    Returns:
        A line for each thing that is newly trusted.
    """
    from rlcm_cli.errors import ConfigError
    from rlcm_cli.store.trust import is_trusted, trust, trust_folder

    lines = []
    for wish in find_wishes(run, rewards=rewards, ray=ray, of_a_run=of_a_run):
        if not _is_named(wish, given) and not (wish.identity and is_trusted(*wish.identity)):
            raise ConfigError(f"{run.layout.root}: {_refusal(wish)}")
        if wish.identity and trust(*wish.identity) and wish.kind == "code":
            lines.append(f"{wish.text} is trusted on this machine as it is now ({trust_folder()})")
    return lines


def find_wishes(
    run: Run, *, rewards: Iterable[str] | None = None, ray: bool = False, of_a_run: bool = False
) -> Iterator[Wish]:
    """List what a run's configuration asks for; arguments as of `permit`."""
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
        return f"the configuration has a reward that is code, {wish.text}; look at it, then allow it with --allow-code"
    if wish.kind == "host":
        host = _origin(wish.text).partition("://")[2]
        return (
            f"the configuration ({wish.setting}) would send images, and a token where one is set, to {wish.text!a}, "
            f"an address that only it names; if you trust it, allow it with --allow-host {host}"
        )
    what = "reads the environment variable" if wish.kind == "key" else "reads the local file or folder"
    return (
        f"the configuration {what} {wish.text!a}, which only it names; if you trust it, name it, too: "
        f"--set '{_assignment(wish)}'"
    )


def _assignment(wish: Wish) -> str:
    from rlcm_cli.toml_files import write_key

    head, _, key = wish.setting.rpartition(".")
    table, _, reward = head.partition(".")
    return f"{write_key(table, reward, key)}={wish.text}"


def _origin(address: str) -> str:
    """Return scheme, host and port of an address; of what is none, the text itself."""
    try:
        parts = urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return address
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.scheme and parts.hostname else address


def _host_of(allowed: str) -> str:
    """Return HOST or HOST:PORT of what --allow-host was given."""
    return (_origin(allowed).partition("://")[2] if "://" in allowed else allowed).lower()


def _host_variables() -> tuple[str, ...]:
    from rlcm_cli.rewards.judges import ENDPOINT_VARIABLE

    return (ENDPOINT_VARIABLE, RAY_VARIABLE)


def _identify_code(name: str) -> tuple[str, ...]:
    """Identify code by where it is and its digest, so that it is trusted as it is; empty where it is not here."""
    from rlcm_cli.errors import RlcmError
    from rlcm_cli.rewards.custom.functions import code_source, digest_code

    try:
        return ("code", str(code_source(name)), digest_code(name))
    except RlcmError:
        return ()


def _as_path(text: str) -> Path | None:
    """Return the path that a text names, if there is something; what is in the current directory needs no leave."""
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
