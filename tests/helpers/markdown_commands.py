"""The commands that a markdown page shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("rlcm", "make", "python")
ENDS = frozenset({"&&", "||", "|", ";", "&", ">", ">>"})


@dataclass(frozen=True)
class Shown:
    """A command of a page, from a code block or from within a sentence."""

    words: tuple[str, ...]
    line: int
    """Number of its line, from 1; of a sentence that of the paragraph's first."""
    inline: bool = False

    @property
    def text(self) -> str:
        """The command as one would type it."""
        return " ".join(self.words)

    @property
    def options(self) -> list[str]:
        """Names of its options."""
        return [word.partition("=")[0] for word in self.words[1:] if re.match(r"--?[a-z]", word)]


def read_commands(text: str) -> list[Shown]:
    """List the commands of a page's code blocks, then those between backquotes in its sentences."""
    blocks, prose = _divide(text)
    found = []
    for number, line in _join(blocks):
        found += [Shown(words, number) for words in _commands(line)]
    for number, paragraph in prose:
        for span in re.findall(r"`([^`]+)`", paragraph):
            plain = re.sub(r"[\[\]]", "", span)  # of `rlcm tasks [NAME]`
            found += [Shown(words, number, inline=True) for words in _commands(" ".join(plain.split()))]
    return found


def read_files(text: str) -> dict[str, str]:
    """Return the fenced blocks that begin with a comment naming a file, `# redness.py`: name → text."""
    named = re.findall(r"^```\w*\n# ([\w.]+\.py)\b[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return dict(named)


def read_page(path: Path) -> list[Shown]:
    """List the commands of a file."""
    return read_commands(path.read_text(encoding="utf-8"))


def _divide(text: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Part a page into lines of code and paragraphs of prose, each with the number of its (first) line."""
    code: list[tuple[int, str]] = []
    prose: list[tuple[int, str]] = []
    fence = None
    open_paragraph = False
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```|~~~)\s*(\w*)", line)
        if mark and (fence is None or mark[1] == fence[0]):
            fence = None if fence else (mark[1], mark[2])
        elif fence is not None:
            if fence[1] in ("", "bash", "sh", "shell", "console"):
                code.append((number, line.strip()))
            continue
        elif line.startswith("    ") and not open_paragraph:
            code.append((number, line.strip()))
            continue
        elif line.strip() and open_paragraph:
            prose[-1] = (prose[-1][0], f"{prose[-1][1]}\n{line}")
        elif line.strip():
            prose.append((number, line))
        open_paragraph = fence is None and not mark and bool(line.strip())
    return code, prose


def _join(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join lines that end with a backslash to those after them."""
    waiting: tuple[int, str] | None = None
    for number, line in lines:
        first, text = (waiting[0], waiting[1] + line) if waiting else (number, line)
        if text.endswith("\\"):
            waiting = (first, text[:-1])
        else:
            yield first, text
            waiting = None


def _commands(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a line that call one of `PROGRAMS`, without their environment and what follows a pipe."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:  # an apostrophe in a drawing
        return
    part: list[str] = []
    for word in [*words, "&&"]:
        if word not in ENDS and not word.startswith((">", "2>")):
            part.append(word)
            continue
        while part and re.match(r"[A-Z_]+=", part[0]):
            part = part[1:]
        if part and (program := part[0].rpartition("/")[2]) in PROGRAMS:
            yield (program, *part[1:])
        part = [] if word == "&&" else ["(after)"]
