"""The one way in which files of a run are opened: whatever lies in their place, a reader gets the file or one line.

A run directory may come from elsewhere or be damaged in any way. So what is opened must be a regular file (a fifo or a
device would never end), of a bounded size; and JSON must be shallow, without huge integers, NaN, or text that is not
Unicode, so that nothing after it can fail or take unbounded time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlcm_cli.errors import (
    CorruptFileError,
    ForeignFileError,
    FormatVersionError,
    MissingFileError,
    UnreadableFileError,
)
from rlcm_cli.store.layout import FORMAT_VERSION
from rlcm_cli.wording import command

LARGEST_JSON = 64 << 20
"""Bytes of a plan, of prompt statistics, of all metrics; any other JSON file of a run is much smaller."""
DEEPEST = 24
"""Levels of nesting. A configuration has six."""
INTEGERS = range(-(2**63), 2**64)


class Remedy:
    """What to do about a damaged file, filled in as a template; its command is quoted for a shell."""

    def format(self, *, path: Path) -> str:
        """Return the remedy for a file or folder."""
        return f"move it away with `{command('quarantine', path)}` and run the phase again"


REMEDY = Remedy()


class Record(BaseModel):
    """A frozen JSON object of the run directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


AnyRecord = TypeVar("AnyRecord", bound=BaseModel)


@contextlib.contextmanager
def open_file(path: Path, remedy: str | None = None) -> Iterator[BufferedReader]:
    """Open a regular file for reading, and explain what goes wrong with reading it.

    `remedy`: what to do where something else lies there; None: put it into quarantine. Raises `MissingFileError`,
    `CorruptFileError` for what is not a regular file, and `UnreadableFileError`.
    """
    advice = REMEDY.format(path=path) if remedy is None else remedy
    with explain_reading(path):
        # Without waiting: a fifo that nobody writes to is opened, too, and then refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise CorruptFileError(f"{path}: is {_name_kind(mode)}, not a file; {advice}")
            stream = os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
        with stream:
            yield stream


@contextlib.contextmanager
def explain_reading(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read a path into one line.

    Raises `MissingFileError` or `UnreadableFileError`.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path}: not there") from None
    except OSError as error:
        raise UnreadableFileError(
            f"{path}: cannot be read: {error.strerror}; check its permissions and the disk that it is on"
        ) from None


def read_bytes(path: Path, limit: int, remedy: str | None = None) -> bytes:
    """Read a file of at most `limit` bytes. Raises the errors of `open_file`, `CorruptFileError` for a larger one."""
    with open_file(path, remedy) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        advice = REMEDY.format(path=path) if remedy is None else remedy
        raise CorruptFileError(f"{path}: is larger than {limit:,} bytes, so it is not what should be there; {advice}")
    return data


def parse_json(data: bytes | str) -> Any:
    """Parse JSON that any reader can take.

    Raises `ValueError` for what is not JSON, not UTF-8, nested more than `DEEPEST` levels deep, or has integers of
    more than 64 bits, numbers that are not finite, or half a surrogate pair.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, parse_int=_parse_integer, parse_float=_parse_float, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    _check_value(value, DEEPEST)
    return value


def read_json(path: Path, remedy: str | None = None) -> dict[str, Any]:
    """Read a JSON object of the run directory and check its `format_version`, where it has one.

    Raises the errors of `open_file`, `CorruptFileError`, `ForeignFileError` or `FormatVersionError`.
    """
    return parse_object(read_bytes(path, LARGEST_JSON, remedy), path, remedy)


def parse_object(data: bytes, path: Path, remedy: str | None = None) -> dict[str, Any]:
    """Parse the content of a JSON file as `read_json` does."""
    advice = REMEDY.format(path=path) if remedy is None else remedy
    try:
        values = parse_json(data)
    except ValueError as error:
        raise CorruptFileError(f"{path}: is not JSON ({describe_fault(error)}); {advice}") from None
    if not isinstance(values, dict):
        raise CorruptFileError(f"{path}: holds no JSON object; {advice}")
    if "format_version" in values:
        check_version(values["format_version"], path)
    return values


def read_object(path: Path, kind: type[AnyRecord], what: str, remedy: str | None = None) -> AnyRecord:
    """Read a JSON file as a record. `what` it should be, as shown. Raises as `read_json`."""
    return parse_record(read_json(path, remedy), kind, path, what, remedy)


def parse_record(
    values: dict[str, Any], kind: type[AnyRecord], path: Path, what: str, remedy: str | None = None
) -> AnyRecord:
    """Check the values of a JSON file.

    Raises `CorruptFileError`, which names the first value that cannot be, and the errors of `check_version` for what
    should state its version.
    """
    try:
        record = kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in found["loc"])[:80]
        fault = f"{place}: {found['msg']}" if place else found["msg"]
        advice = REMEDY.format(path=path) if remedy is None else remedy
        raise CorruptFileError(f"{path}: cannot be read as {what} ({fault[:200]}); {advice}") from None
    if "format_version" in kind.model_fields:
        check_version(values.get("format_version"), path)
    return record


def check_version(version: object, path: Path) -> None:
    """Raise `ForeignFileError` for what is not a format version, `FormatVersionError` for that of a newer rlcm."""
    if type(version) is not int or version < 1:
        raise ForeignFileError(f"{path}: states no format version; {REMEDY.format(path=path)}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: has format version {version}, this rlcm reads up to {FORMAT_VERSION}; install a newer rlcm"
        )


def describe_fault(error: ValueError) -> str:
    """Return what is wrong with a text, without the text itself."""
    if isinstance(error, UnicodeError):
        return "its text is not Unicode"
    return str(error)[:200]


def _name_kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a fifo",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "something else")


def _parse_integer(text: str) -> int:
    # Python takes time that grows with the square of the digits, and refuses more than 4,300 of them.
    if len(text) > 20 or int(text) not in INTEGERS:
        raise ValueError("an integer has more than 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_value(value: Any, levels: int) -> None:
    if isinstance(value, str):
        value.encode()  # half a surrogate pair fails
    elif isinstance(value, dict | list):
        if not levels:
            raise ValueError("nested too deep")
        for item in value:
            _check_value(item, levels - 1)
        if isinstance(value, dict):
            for item in value.values():
                _check_value(item, levels - 1)
