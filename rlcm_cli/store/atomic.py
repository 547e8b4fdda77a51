"""Atomic publication: a reader sees a whole file or none.

A file is written under a temporary name beside its place, flushed to the disk, and given its name. A
process that dies on the way leaves a `.tmp` name that no reader looks at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from rlcm_cli.errors import StorageFullError

TEMPORARY_SUFFIX = ".tmp"


def publish_bytes(path: Path, data: bytes) -> bool:
    """Create `path` with `data` unless it is there; tell whether this call created it."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(path, data)
        try:
            return _rename_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def replace_bytes(path: Path, data: bytes) -> None:
    """Give `path` the content `data`, whatever it held before."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(path, data)
        try:
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a name to write a file under; on leaving the block the file becomes `path`, if it was written."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(path)
        try:
            yield temporary
            if temporary.exists():
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


@contextlib.contextmanager
def publish_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to fill; on leaving the block it becomes `path`, unless `path` is there already."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as stream:
                        os.fsync(stream.fileno())
            _flush_folder(temporary)
            try:
                os.rename(temporary, path)
            except OSError as error:
                # A folder that another process published first is as good as ours.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES) or not path.is_dir():
                    raise
            _flush_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no reader sees a part of it: it loses its name before its files."""
    temporary = _temporary_name(path)
    path.rename(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _write_temporary(path: Path, data: bytes) -> Path:
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


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
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"{path}: not written, the disk is full; free some space (of a run, --keep-rollouts and "
                "--keep-checkpoints bound it) and run the same command again, nothing is lost"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageFullError(
                f"{path}: not written, the place is not writable ({error.strerror}); choose another folder, "
                "or change its permissions"
            ) from None
        raise
