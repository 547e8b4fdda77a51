"""The standard streams of this process, which may be closed, full, or in an encoding that lacks a character."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

import typer

from rlcm_cli.wording import to_line

SUBSTITUTES = {"±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "λ": "lambda"}
ERRORS = "rlcm.substitute"
# All but tab and newline; 0x9B is ESC [ in one character; the last two ranges reorder adjacent text.
COMMANDING = {*range(9), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Code points of control characters."""
SHOWN = dict.fromkeys(COMMANDING, "�")
ESCAPED = {point: f"\\u{point:04x}" for point in COMMANDING if point >= 0x7F}
"""For JSON and TOML, whose writers escape the others."""


def prepare_streams() -> None:
    """Make stdout and stderr accept whatever is printed.

    A closed stream is redirected to nowhere: otherwise the next opened file would get its descriptor, and a library's
    stray line would end up in that file. A character that the encoding lacks is written in ASCII.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY
            nowhere = os.open(os.devnull, mode)
            if not _is_open(number):
                os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w", encoding="utf-8"))
    codecs.register_error(ERRORS, substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace", "surrogateescape"):
            stream.reconfigure(errors=ERRORS)


def substitute(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error: return an ASCII substitute if there is one, else a backslash and the number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(
        SUBSTITUTES.get(sign, sign.encode("ascii", "backslashreplace").decode()) for sign in wrong
    ), error.end


def clean(text: str) -> str:
    """Return a text with "�" for each control character except tab and newline: text from files may have any."""
    return text if text.isprintable() else text.translate(SHOWN)


def say(text: str, *, err: bool = False) -> None:
    """Print a line, cleaned."""
    typer.echo(clean(text), err=err)


def announce(what: str, *, quiet: bool, as_json: bool) -> None:
    """Print what is being loaded, before the imports of libraries that take seconds themselves."""
    # Of several processes of a job, only the first prints.
    if not quiet and not as_json and os.environ.get("RANK", "0") == "0":
        say(f"loading {to_line(what)} …")
        sys.stdout.flush()


def print_data(text: str) -> None:
    """Print JSON or TOML for a program, as UTF-8 whatever the encoding of stdout is."""
    stream, text = sys.stdout, text.translate(ESCAPED)
    if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
        stream.flush()
        stream.buffer.write(text.encode("utf-8", "backslashreplace"))
        stream.buffer.flush()
    else:
        stream.write(text)
        stream.flush()


def silence(stream: TextIO) -> None:
    """Discard further output, because the reader has gone or the disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def fault_of(stream: TextIO) -> OSError | None:
    """Return why a stream cannot be written; None if it can, after writing an empty line to it."""
    try:
        stream.write("\n")
        stream.flush()
    except OSError as error:
        return error
    return None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
