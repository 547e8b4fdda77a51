"""Small pieces of text shared by all rooms: counted nouns, commands to type, paths in the home folder."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rlcm_cli.errors import ConfigError

LONGEST = 80
"""Number of characters of user input that an error repeats."""
LONGEST_LINE = 2_000
"""Number of characters of a message; names and values from elsewhere may be of any length."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as `1 image` or `1,200 images`; `plural`: if it is not formed with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def join_words(words: Sequence[str]) -> str:
    """Write words as a sentence names them.

    >>> join_words(["ddim", "lcm", "tcd"])
    'ddim, lcm and tcd'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def join_numbers(numbers: Sequence[int]) -> str:
    """Write ascending whole numbers, those in a row by their first and last.

    >>> join_numbers([0, 1, 2, 5, 7, 8])
    '0 to 2, 5, 7, 8'
    """
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(f"{row[0]} to {row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)


def format_duration(seconds: float) -> str:
    """Return a duration with two or three digits, in s, min or h."""
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_age(seconds: float) -> str:
    """Return how long ago something was, with days from two on; what is to come is now.

    >>> format_age(200_000)
    '2 days ago'
    """
    days = int(seconds // 86_400)
    return f"{days} days ago" if days > 1 else f"{format_duration(max(0.0, seconds))} ago"


def format_size(size: float) -> str:
    """Return a number of bytes with up to three digits, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(size) < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_gb(size: float) -> str:
    """Return a number of bytes in GB (1e9) with two decimals, for memory that is compared with a budget."""
    return f"{size / 1e9:.2f} GB"


def slug(text: str) -> str:
    """Return a text as part of a file's name: at most 40 small letters, digits and hyphens; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def command(*words: object) -> str:
    """Return an `rlcm` command that can be copied: words are quoted where a shell would split them."""
    return shlex.join(["rlcm", *map(str, words)])


def shorten(text: str, longest: int = LONGEST) -> str:
    """Return a text with its middle left out if it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}…{text[-longest // 3 :]}"


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error's line that names what was probably meant; empty if nothing is similar."""
    found = difflib.get_close_matches(word, known, n=1)
    if not found:  # `learning_rate` means `train.learning_rate`
        found = [key for key in known if key.split(".")[-1] == word.split(".")[-1]][:1]
    return f" (did you mean '{found[0]}'?)" if found else ""


def expand_home(text: str) -> str:
    """Return a path with a leading `~` or `~NAME` replaced by that home folder, as a shell does.

    A shell does not expand `--run=~/runs/a`, a quoted path, or a path in a file. Raises `ConfigError` if this user has
    no home folder.
    """
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text and text.partition("/")[0] == "~":
        raise ConfigError(f"{text}: this user has no home folder (HOME is not set); write the path in full")
    return expanded


def to_line(text: str) -> str:
    """Return a message as one line that is safe to print in a terminal.

    Names of files, runs and prompts may contain anything: control characters would move the cursor or colour the
    terminal, and half a surrogate pair cannot be written. They become escapes.
    """
    line = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE * 2 // 3]} … {line[-LONGEST_LINE // 3 :]}"
    return line


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def to_json_values(value: Any) -> Any:
    """Return a nested value with None for every number that is not finite: JSON has no word for one."""
    if isinstance(value, Mapping):
        return {key: to_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
