"""What a check of the machine found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlcm_cli.wording import format_size

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line on one thing."""

    topic: str
    status: Status
    """`note`: all that is needed works, but something may surprise; `problem`: something needed does not."""
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def format_memory(size: float) -> str:
    """Return a number of bytes, from 1 GB on with one decimal.

    >>> format_memory(2_420_000_000)
    '2.4 GB'
    """
    return format_size(size) if size < 1e9 or size >= 1e12 else f"{size / 1e9:,.1f} GB"


def shorten_home(path: Path) -> str:
    """Return a path with ~ for the home folder, which tells the user's name.

    >>> shorten_home(Path.home() / "runs")
    '~/runs'
    """
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):  # elsewhere, or a user without a home
        return str(path)
