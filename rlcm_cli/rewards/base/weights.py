"""Weights behind a reward, declared once: where they are found, what is missing, and what identifies them."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.foreign.hub import HubError, fetch_file, fetch_snapshot, is_cached

_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Weights:
    """A folder of weights: one on this machine, or a repository of the hub.

    Attributes:
        source: What the setting names by default: a hub id, or `embedded`.
        files: Names of the files that are read, as `snapshot_download` takes them; `*` stands for any characters.
        size: Size of the default's download, such as "1.7 GB".
        words: Words before the source in a list of what a reward needs, such as "the processor of".
        embedded: Name of a model inside the package, such as "emoji-clip", that the setting may name as well.
    """

    source: str
    files: Sequence[str]
    size: str = ""
    words: str = ""
    embedded: str = ""

    @property
    def requirement(self) -> str:
        """What is needed where the setting keeps its default; empty for a model inside the package."""
        return "" if self.source == self.embedded else f"{self.words} {self.source} ({self.size})".lstrip()

    def find(self, chosen: str, *, reward: str, setting: str = "model") -> Path:
        """Return the folder, downloading it where `chosen` is not a folder on this machine.

        Args:
            chosen: Value of the setting: a folder, a hub id, or the name of the embedded model.
            reward: Name of the reward, for messages.
            setting: Name of the setting, for messages.

        Raises:
            ConfigError: If `chosen` is not text.
            RewardError: If there is no such folder and the hub does not have it: what to download, where to put it.
        """
        if not isinstance(chosen, str) or not chosen:
            raise ConfigError(f"reward {reward!r}: {setting} {chosen!r} must be a folder or a hub id")
        if chosen == self.embedded:
            return find_embedded(chosen, reward=reward)
        if Path(chosen).is_dir():
            return Path(chosen)
        try:
            return fetch_snapshot(chosen, patterns=self.files)
        except HubError as error:
            raise RewardError(
                f"reward {reward!r}: {chosen!r} is not a folder here and the hub does not give it ({error}); "
                f"{self._advise(chosen, reward, setting)}"
            ) from error

    def find_obstacle(self, chosen: str, *, reward: str, setting: str = "model") -> str | None:
        """Return why the weights are not on this machine, without asking the hub; None where they are."""
        if chosen == self.embedded or Path(chosen).is_dir() or is_cached(chosen, patterns=self.files):
            return None
        return f"{setting} {chosen!r} is not here; {self._advise(chosen, reward, setting)}"

    def digest(self, folder: Path, *, reward: str) -> str:
        """Return the SHA-256 (hex) over the names and contents of the folder's files that `files` names.

        Raises:
            RewardError: If a file cannot be read, or a name without `*` is not there.
        """
        names = sorted(
            name
            for file in folder.rglob("*")
            if file.is_file()
            and any(fnmatch.fnmatch(name := file.relative_to(folder).as_posix(), pattern) for pattern in self.files)
        )
        for pattern in self.files:
            if "*" not in pattern and pattern not in names:
                raise RewardError(
                    f"reward {reward!r}: {folder / pattern} is not there; the folder of its model holds "
                    f"{', '.join(self.files)}"
                )
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\n".encode())
            digest.update(_digest_file(folder / name, reward))
        return digest.hexdigest()

    def _advise(self, chosen: str, reward: str, setting: str) -> str:
        files = " ".join(f"--include '{pattern}'" for pattern in self.files)
        size = self.size if chosen == self.source else "the size of the model"
        return _advise(f"{chosen} {files}", size, f"{reward}.{setting}=DIR")


@dataclass(frozen=True)
class WeightFile:
    """One file of weights: a file on this machine, or one of a repository of the hub.

    Attributes:
        source: What the setting names by default: `OWNER/REPOSITORY/FILE` of the hub.
        size: Size of the default's download.
    """

    source: str
    size: str

    @property
    def requirement(self) -> str:
        """What is needed where the setting keeps its default."""
        return f"{self.source} ({self.size})"

    def find(self, chosen: str, *, reward: str, setting: str) -> Path:
        """Return the path of the file, downloading it where it is not on this machine.

        Args:
            chosen: Value of the setting: a path, or `OWNER/REPOSITORY/FILE` of the hub.
            reward: Name of the reward, for messages.
            setting: Name of the setting, for messages.

        Raises:
            ConfigError: If `chosen` is not text, or a folder.
            RewardError: If it is not here and the hub does not have it: what to download, and where to put it.
        """
        if not isinstance(chosen, str) or not chosen:
            raise ConfigError(
                f"reward {reward!r}: {setting} {chosen!r} must be a file or OWNER/REPOSITORY/FILE of the hub"
            )
        if Path(chosen).is_file():
            return Path(chosen)
        if Path(chosen).is_dir():
            raise ConfigError(f"reward {reward!r}: {setting} {chosen!r} is a folder; name the file in it")
        repository, name = _split_hub_name(chosen)
        if not repository:
            raise RewardError(
                f"reward {reward!r}: there is no file {chosen!r}; set {setting} to one that is here, or to "
                "OWNER/REPOSITORY/FILE of the hub"
            )
        try:
            return fetch_file(repository, name)
        except HubError as error:
            raise RewardError(
                f"reward {reward!r}: {chosen!r} is not a file here and the hub does not give it ({error}); "
                f"{self._advise(chosen, reward, setting)}"
            ) from error

    def find_obstacle(self, chosen: str, *, reward: str, setting: str) -> str | None:
        """Return why the file is not on this machine, without asking the hub; None where it is."""
        if Path(chosen).is_file():
            return None
        repository, name = _split_hub_name(chosen)
        if not repository:
            return f"there is no file {chosen!r}"
        if is_cached(repository, name):
            return None
        return f"{name} is not here; {self._advise(chosen, reward, setting)}"

    def digest(self, path: Path, *, reward: str) -> str:
        """Return the SHA-256 (hex) of the file. Raises `RewardError` where it cannot be read."""
        return _digest_bytes(path, reward).hex()

    def _advise(self, chosen: str, reward: str, setting: str) -> str:
        repository, name = _split_hub_name(chosen)
        size = self.size if chosen == self.source else "the size of the file"
        return _advise(f"{repository} {name}", size, f"{reward}.{setting}=DIR/{name}")


def find_embedded(model: str, *, reward: str) -> Path:
    """Return the folder of a model inside the package. Raises `RewardError` where the installation lacks it."""
    folder = _PACKAGE / model.replace("-", "_")
    if not folder.is_dir():
        raise RewardError(f"reward {reward!r}: {folder} is missing from this installation; reinstall rlcm")
    return folder


def join_digests(digests: Sequence[str]) -> str:
    """Return one digest (SHA-256, hex) of several; a single one is its own, and that of none is empty."""
    if len(digests) < 2:
        return "".join(digests)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _advise(download: str, size: str, setting: str) -> str:
    """Return how to bring weights to a machine that cannot reach the hub."""
    return (
        f"where there is a network, run `hf download {download} --local-dir DIR` ({size}), bring DIR here, and "
        f"--set reward_settings.{setting}"
    )


def _split_hub_name(file: str) -> tuple[str, str]:
    """Split `OWNER/REPOSITORY/FILE`; two empty texts for anything else."""
    parts = file.split("/", 2)
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 and all(parts) else ("", "")


def _digest_file(path: Path, reward: str) -> bytes:
    if path.suffix != ".json":
        return _digest_bytes(path, reward)
    try:
        # A checkout on Windows may have changed the line ends.
        return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).digest()
    except OSError as error:
        raise _unreadable(path, reward, error) from error


def _digest_bytes(path: Path, reward: str) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, reward, error) from error


def _unreadable(path: Path, reward: str, error: OSError) -> RewardError:
    return RewardError(f"reward {reward!r}: {path} cannot be read ({error.strerror})")
