"""Atomic publication: a reader sees a whole file or none.

A file is written under a temporary name next to its destination, flushed to the disk, and given its name. A process
that dies on the way leaves a `.tmp` name that no reader looks at. As long as it lives it holds a lock on that name,
so that others can tell what is left over, and remove it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from rlcm_cli.errors import StorageFullError, StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_SUFFIX = ".tmp"
STALE_AFTER = 24 * 3600
"""Seconds without a change after which what is half-written is left over, where the file system has no locks."""


def publish_bytes(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it is there; tell whether this call created it."""
    with explain_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written_temporary(path, data) as temporary:
            return _rename_new(temporary, path)


def replace_bytes(path: Path, data: bytes) -> None:
    """Write into `path` the content `data`, whatever it held before."""
    with explain_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written_temporary(path, data) as temporary:
            os.replace(temporary, path)
        _flush_folder(path.parent)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under; on leaving the block the file becomes `path`, if it was written."""
    with explain_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(path) as folder:
            temporary = folder / path.name
            yield temporary
            if temporary.exists():
                _flush_file(temporary, folder)
                os.replace(temporary, path)
        _flush_folder(path.parent)


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; on leaving the block it becomes `path`, unless `path` is there already.

    Its files get the mode that the umask asks for, also those that were written for their owner only.
    """
    with explain_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(path) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_file(file, temporary)
            _flush_folder(temporary)
            try:
                os.rename(temporary, path)
            except OSError as error:
                # A folder that another process published first is as good as ours.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not path.is_dir():
                    raise
            _flush_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no reader sees a part of it: it loses its name before its files.

    Raises `StorageFullError` where it cannot be removed.
    """
    with explain_writing(path):
        temporary = _temporary_name(path)
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def set_aside(path: Path, target: Path) -> Path:
    """Move a file or folder to `target`, or next to what lies there; return its new path. Nothing is overwritten."""
    attempt, free = 0, target
    while os.path.lexists(free):
        attempt += 1
        free = target.with_name(f"{target.name}.{attempt}")
    with explain_writing(free):
        free.parent.mkdir(parents=True, exist_ok=True)
        path.rename(free)
    return free


def remove_stale(folder: Path) -> list[Path]:
    """Remove what processes that are gone have left half-written in a folder; return what was removed.

    What a living process is writing, on this machine or another, is locked and stays.
    """
    found = [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]
    return [path for path in found if _remove_abandoned(path)]


_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX))


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


@contextlib.contextmanager
def _written_temporary(path: Path, data: bytes) -> Iterator[Path]:
    while True:
        temporary = _temporary_name(path)
        try:
            with temporary.open("xb") as stream:
                if not _claim(stream.fileno(), temporary):
                    continue
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                if fcntl is not None:
                    yield temporary
                    return
            yield temporary  # Windows renames no open file
            return
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    descriptor = None
    while True:
        temporary = _temporary_name(path)
        temporary.mkdir()
        try:
            if os.name == "posix":
                with contextlib.suppress(FileNotFoundError):
                    descriptor = os.open(temporary, os.O_RDONLY)
                if descriptor is None or not _claim(descriptor, temporary):
                    continue
            yield temporary
            return
        finally:
            if descriptor is not None:
                os.close(descriptor)
                descriptor = None
            shutil.rmtree(temporary, ignore_errors=True)


def _claim(descriptor: int, temporary: Path) -> bool:
    """Lock what was just created; False: another process has taken it for left over before it was locked."""
    return _lock(descriptor, exclusive=False) is not False and temporary.exists()


def _remove_abandoned(path: Path) -> bool:
    """Remove what is half-written unless the process that was writing it lives; tell whether it is gone."""
    try:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        descriptor = os.open(path, os.O_RDONLY)
        try:
            alone = _lock(descriptor, exclusive=True)
            old = time.time() - status.st_mtime > STALE_AFTER
            if alone is False or (alone is None and not old):
                return False
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(descriptor)
    except OSError:  # someone else removes it, or it may not be removed
        return False
    return True


def _lock(descriptor: int, *, exclusive: bool) -> bool | None:
    """Lock an open file or folder until it is closed, without waiting; None: the file system cannot."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems lock no folders, or nothing
        return None
    return True


def _flush_file(file: Path, folder: Path) -> None:
    """Return a file its folder's mode, as the umask made it, without the permission to execute, and flush it."""
    wanted = folder.stat().st_mode & 0o666
    if stat.S_IMODE(file.stat().st_mode) != wanted:
        with contextlib.suppress(PermissionError):  # a file system without modes
            file.chmod(wanted)
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _rename_new(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)  # unlike a rename on POSIX, fails where the name is taken
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        os.replace(temporary, path)
    _flush_folder(path.parent)
    return True


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open a folder to flush it
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into one line.

    Raises `StorageFullError`, or `StoreError` for a place that cannot be one.
    """
    try:
        yield
    except OSError as error:
        raise explain_system(error, path) or error from None


def explain_system(error: OSError, path: Path) -> StoreError | None:
    """Return in one line why the system did not write a path; None: no cause that its user can remove."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(
            f"{path}: not written, the disk is full; free some space (of a run, --keep-rollouts and "
            "--keep-checkpoints bound it) and run the same command again, nothing is lost"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageFullError(
            f"{path}: not written, the place is not writable ({error.strerror}); choose another folder, or "
            "change its permissions"
        )
    dangling = next((place for place in (path, *path.parents) if place.is_symlink() and not place.exists()), None)
    if dangling is not None:
        return StoreError(
            f"{path}: not written, {dangling} is a link to {os.readlink(dangling)}, which is not there; mount the "
            "disk that it is on, or remove the link"
        )
    places = [Path(os.fsdecode(place)) for place in (error.filename2, error.filename) if place is not None]
    own = [place for place in places if place in (path, *path.parents) or place.parent == path.parent]
    if error.errno in _UNUSABLE and own:
        return StoreError(f"{path}: not written ({own[0]}: {error.strerror}); choose another place")
    return None


@contextlib.contextmanager
def explain_safetensors() -> Iterator[None]:
    """Turn the error with which safetensors reports a full disk into the `OSError` that it was."""
    import safetensors

    try:
        yield
    except safetensors.SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from None


_UNUSABLE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
