"""Weights behind a reward: a folder here or a repository of the hub, found, digested and loaded quietly."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.foreign.hub import HubError, fetch_snapshot, is_cached


def find_weights(
    model: str,
    patterns: Sequence[str],
    *,
    reward: str,
    size: str,
    revision: str | None = None,
    setting: str = "model",
) -> Path:
    """Return the folder of a model, downloading it where `model` is no folder here.

    Args:
        model: A folder, or the id of a hub repository.
        patterns: Names of the files that are needed, as `snapshot_download` takes them.
        reward: Name of the reward, for error messages.
        size: Size of the download for people, such as "1.7 GB".
        revision: Branch, tag or commit on the hub.
        setting: Setting that names the model, for error messages.

    Raises:
        ConfigError: If `model` is no text.
        RewardError: If there is no such folder and the hub does not give one: what to download, and where to
            put it.
    """
    if not isinstance(model, str) or not model:
        raise ConfigError(f"reward {reward!r}: {setting} {model!r} must be a folder or a hub id")
    if Path(model).is_dir():
        return Path(model)

    try:
        return fetch_snapshot(model, revision=revision, patterns=patterns)
    except HubError as error:
        raise RewardError(
            f"reward {reward!r}: {model!r} is not a folder here and the hub does not give it ({error}); "
            f"{download_advice(model, patterns, reward=reward, size=size, setting=setting)}"
        ) from error


def download_advice(model: str, patterns: Sequence[str], *, reward: str, size: str, setting: str = "model") -> str:
    """Say how to get a model of the hub onto a machine that cannot reach it."""
    files = " ".join(f"--include '{pattern}'" for pattern in patterns)
    return (
        f"where there is a network, run `hf download {model} {files} --local-dir DIR` ({size}), bring DIR here, and "
        f"--set reward_settings.{reward}.{setting}=DIR"
    )


def missing_weights(
    model: str, patterns: Sequence[str], *, reward: str, size: str, setting: str = "model"
) -> str | None:
    """Say why the weights are not on this machine, without asking the hub; None where they are."""
    if Path(model).is_dir():
        return None

    if not is_cached(model, patterns=patterns):
        advice = download_advice(model, patterns, reward=reward, size=size, setting=setting)
        return f"{setting} {model!r} is not here; {advice}"
    return None


def digest_weights(folder: Path, patterns: Sequence[str], *, reward: str) -> str:
    """Return the SHA-256 (hex) over the files of a folder that match the patterns, by name.

    Raises:
        RewardError: If a file cannot be read, or a pattern without a wildcard matches none.
    """
    names = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and any(fnmatch.fnmatch(file.relative_to(folder).as_posix(), p) for p in patterns)
    )
    for pattern in patterns:
        if "*" not in pattern and pattern not in names:
            raise RewardError(
                f"reward {reward!r}: {folder / pattern} is not there; the folder of its model holds "
                f"{', '.join(patterns)}"
            )
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\n".encode())
        digest.update(_digest_file(folder / name, reward))
    return digest.hexdigest()


def _digest_file(path: Path, reward: str) -> bytes:
    try:
        if path.suffix == ".json":
            # A checkout on Windows may have changed the line ends.
            return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).digest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise RewardError(f"reward {reward!r}: {path} cannot be read ({error.strerror})") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and loading report off the terminal: only the command line prints."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """Give the message of an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
