"""The standard streams of this process: closed, full, or in an encoding that lacks a sign that we print."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

SUBSTITUTES = {"±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "λ": "lambda"}
ERRORS = "rlcm.substitute"


def prepare_streams() -> None:
    """Make stdout and stderr take whatever is printed.

    A stream that was closed goes nowhere: its descriptor would otherwise be that of the next file which is opened, and
    a library's stray line would land in it. A sign that the encoding lacks is written in ASCII.
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
    """Handle an encoding error of the codecs: the ASCII for signs that have one, else a backslash and the number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(
        SUBSTITUTES.get(sign, sign.encode("ascii", "backslashreplace").decode()) for sign in wrong
    ), error.end


def print_data(text: str) -> None:
    """Print a text that a program reads, as UTF-8 whatever the encoding of stdout is."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
        stream.flush()
        stream.buffer.write(text.encode("utf-8", "backslashreplace"))
        stream.buffer.flush()
    else:
        stream.write(text)
        stream.flush()


def silence(stream: TextIO) -> None:
    """Send what is still to be printed nowhere, since whoever read it has left or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def fault_of(stream: TextIO) -> OSError | None:
    """Return why a stream cannot be written; None: it can, and has got an empty line."""
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
