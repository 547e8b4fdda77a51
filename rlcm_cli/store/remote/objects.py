"""Files in an object store, by fsspec: whole objects, conditional puts, bounded retries, one clear error.

An object's name is its path below the run's URL, with `/` between the parts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rlcm_cli.errors import ConfigError, ForeignFileError, RemoteStoreError
from rlcm_cli.store.atomic import replace_file
from rlcm_cli.wording import one_line

ATTEMPTS = 4
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each later pause is twice the one before."""
CONNECTIONS = 16
"""Objects that are read at once."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol → extra of this package that brings its backend."""

Result = TypeVar("Result")


def is_url(place: str) -> bool:
    """Return whether a run is named by a URL. `file://` and plain paths are folders."""
    return "://" in place and not place.startswith("file://")


def check_url(url: str) -> str:
    """Return the URL of a run without a slash at its end.

    Raises `ConfigError` for one that holds more than a place: it would be printed and stored, credentials and all.
    """
    protocol, _, place = url.partition("://")
    host, colon, port = place.partition("/")[0].partition(":")
    if "@" in host + port or (colon and not port.isdigit()) or set("?#") & set(place):
        raise ConfigError(
            f"{protocol}://…: a run's URL has no user, password, query or fragment; give credentials as the "
            "backend reads them from the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN)"
        )
    cleaned = url.rstrip("/")
    if "::" in url or not _is_safe(cleaned.partition("://")[2].lstrip("/")):
        raise ConfigError(f"{url}: names no place for a run; write it like s3://BUCKET/FOLDER")
    return cleaned


def open_store(url: str) -> ObjectStore:
    """Open the folder that a URL names. Raises `ConfigError` for a URL that cannot be, or without its backend."""
    import fsspec

    cleaned = check_url(url)
    protocol = cleaned.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(cleaned)
    except ImportError:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'rlcm[{extra}]'" if extra else f"install the fsspec backend of {protocol}://"
        raise ConfigError(f"{cleaned}: the backend of {protocol}:// is not installed; {remedy}") from None
    except ValueError:
        raise ConfigError(
            f"{cleaned}: {protocol}:// is not a protocol that fsspec knows; try s3://, gs:// or hf://"
        ) from None
    return ObjectStore(cleaned, files, root.rstrip("/"))


@dataclass(frozen=True)
class ObjectStore:
    """The objects below a URL.

    Every method tries again where the store fails, and raises `RemoteStoreError` where it keeps failing.
    """

    url: str
    files: Any
    """The fsspec file system."""
    root: str
    """The URL's path in it."""

    def read(self, name: str) -> bytes | None:
        """Read an object; None: there is none."""
        return self._ask(name, lambda: bytes(self.files.cat_file(self._path(name))))

    def read_all(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Read objects, several at once; those that are not there are None."""
        wanted = list(dict.fromkeys(names))
        with ThreadPoolExecutor(CONNECTIONS) as readers:
            return dict(zip(wanted, readers.map(self.read, wanted), strict=True))

    def size(self, name: str) -> int | None:
        """Ask for the bytes of an object; None: there is none."""

        def ask() -> int:
            self.files.invalidate_cache()
            return int(self.files.info(self._path(name))["size"])

        return self._ask(name, ask)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """List the objects below a folder: name → bytes. What a store has just been given may be missing.

        Raises `ForeignFileError` for a name that leads out of the folder.
        """
        path = self._path(folder) if folder else self.root

        def ask() -> Mapping[str, Any]:
            self.files.invalidate_cache()
            found: Mapping[str, Any] = self.files.find(path, detail=True)
            return found

        entries = self._ask(folder, ask) or {}
        return {self._name(key): int(entry["size"]) for key, entry in entries.items() if entry["type"] == "file"}

    def folders(self, folder: str) -> list[str]:
        """List the names of the folders in a folder, as `sizes` does."""

        def ask() -> list[Mapping[str, Any]]:
            self.files.invalidate_cache()
            found: list[Mapping[str, Any]] = self.files.ls(self._path(folder), detail=True)
            return found

        entries = self._ask(folder, ask) or []
        return sorted(PurePosixPath(self._name(e["name"])).name for e in entries if e["type"] == "directory")

    def download(self, name: str, path: Path) -> bool:
        """Write into `path` the content of an object, whole; False: there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            found = self._ask(name, lambda: self.files.get_file(self._path(name), str(temporary)) or True)
            if not found:
                temporary.unlink(missing_ok=True)
        return bool(found)

    def create(self, name: str, content: bytes | Path) -> bool:
        """Put bytes or a file under a name that is free; False: the name is taken, perhaps by the same content."""

        def put() -> bool:
            try:
                self._put(name, content, mode="create")
            except Exception:
                # Each backend says "taken" in its own way, and the answer to a put that worked may have been lost.
                if self.files.exists(self._path(name)):
                    return False
                raise
            return True

        return self._change(name, put)

    def replace(self, name: str, content: bytes | Path) -> None:
        """Put bytes or a file under a name, whatever it held before."""
        self._change(name, lambda: self._put(name, content, mode="overwrite"))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._ask(name, lambda: self.files.rm_file(self._path(name)))

    def move(self, name: str, target: str) -> bool:
        """Move an object; False: there is none."""
        moved = self._ask(name, lambda: self.files.cp_file(self._path(name), self._path(target)) or True)
        if moved:
            self.remove(name)
        return bool(moved)

    def _put(self, name: str, content: bytes | Path, *, mode: str) -> None:
        path = self._path(name)
        if isinstance(content, Path):
            size = content.stat().st_size
            self.files.put_file(str(content), path, mode=mode)
        else:
            size = len(content)
            self.files.pipe_file(path, content, mode=mode)
        self.files.invalidate_cache()
        stored = self.files.info(path)["size"]
        if stored != size:
            self.files.rm_file(path)  # ours, and of no use to anyone
            raise OSError(f"{stored} of {size} bytes arrived")

    def _path(self, name: str) -> str:
        if not _is_safe(name):
            raise ForeignFileError(f"{self.url}: '{name}' is not a name of a file of a run; remove that object")
        return f"{self.root}/{name}"

    def _name(self, key: str) -> str:
        name = key.removeprefix("/").removeprefix(self.root.removeprefix("/")).removeprefix("/")
        self._path(name)
        return name

    def _ask(self, name: str, ask: Callable[[], Result]) -> Result | None:
        """Ask the store for something; None where the object is not there."""

        def found() -> Result | None:
            try:
                return ask()
            except FileNotFoundError:
                return None

        return self._change(name, found)

    def _change(self, name: str, act: Callable[[], Result]) -> Result:
        """Act on the store, again where it fails."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                return act()
            except (FileNotFoundError, PermissionError, NotImplementedError, ForeignFileError) as error:
                problem: Exception = error
                break
            except Exception as error:  # each backend has its own for a connection that broke or a server in trouble
                problem = error
        if isinstance(problem, ForeignFileError):
            raise problem
        place = f"{self.url}/{name}".rstrip("/")
        raise RemoteStoreError(
            f"{place}: the store refuses or fails ({_say(problem)}); look at bucket, credentials and network, then "
            "run the same command again, nothing is lost"
        ) from problem


def _is_safe(name: str) -> bool:
    """Return whether a name stays below the folder that it is joined to."""
    return bool(name) and "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _say(error: Exception) -> str:
    """Return an error in a line, without what follows a `?`: signed addresses hold credentials there."""
    return re.sub(r"\?\S+", "?…", one_line(error))[:300]
