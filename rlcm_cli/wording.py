"""Small pieces of text that are the same in every room: counted nouns, commands to type, paths of the home folder."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Sequence

from rlcm_cli.errors import ConfigError

LONGEST = 80
"""Characters of what a user typed that an error repeats."""
LONGEST_LINE = 2_000
"""Characters of a message; names and values that others chose may be of any length."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as `1 image` or `1,200 images`; `plural`: where it is not formed by an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def command(*words: object) -> str:
    """Return an `rlcm` command that can be typed as it stands: words are quoted where a shell would split them."""
    return shlex.join(["rlcm", *map(str, words)])


def shorten(text: str, longest: int = LONGEST) -> str:
    """Return a text with its middle left out where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]}…{text[-longest // 3 :]}"


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line; its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(word: str, known: Sequence[str]) -> str:
    """Return the end of an error's line that names what was probably meant; empty where nothing is near."""
    found = difflib.get_close_matches(word, known, n=1)
    if not found:  # `learning_rate` means `train.learning_rate`
        found = [key for key in known if key.split(".")[-1] == word.split(".")[-1]][:1]
    return f" (did you mean '{found[0]}'?)" if found else ""


def expand_home(text: str) -> str:
    """Return a path with `~` or `~NAME` at its front replaced by that home folder, as a shell does where it sees one.

    A shell leaves `--run=~/runs/a` and a quoted path alone, and in a file it has no say. Raises `ConfigError` where
    this user has no home folder.
    """
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text and text.partition("/")[0] == "~":
        raise ConfigError(f"{text}: this user has no home folder (HOME is not set); write the path in full")
    return expanded


def to_line(text: str) -> str:
    """Return a message as one line that a terminal only prints.

    Names of files, runs and prompts may hold anything: control characters would move the cursor or colour the
    terminal, and half a surrogate pair cannot be written. They become escapes.
    """
    line = "".join(letter if letter.isprintable() else _escape(letter) for letter in text)
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE * 2 // 3]} … {line[-LONGEST_LINE // 3 :]}"
    return line


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
