"""Tables of a few short columns and a long last one, in terminals of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEAST = 28
"""Columns that the last cell of a row needs to be readable; with fewer it goes below the others."""
GAP = 2


def print_rows(
    console: Console, rows: Sequence[Sequence[str | Text]], *, header: Sequence[str] = (), apart: bool = False
) -> None:
    """Print rows of equal length: the last cell is wrapped, and no other is ever cut.

    If the window is too narrow for all cells, the last one is indented below the others.
    `apart`: print an empty line after each row.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    every = [*([header] if header else []), *rows]
    taken = sum(max(len(row[column]) for row in every) + GAP for column in range(len(every[0]) - 1)) if every else 0
    if console.width - taken >= LEAST:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 1 if apart else 0, 0), show_header=bool(header))
        for column in range(len(every[0]) if every else 0):
            is_last = column == len(every[0]) - 1
            table.add_column(header[column] if header else "", no_wrap=not is_last, overflow="fold")
        for row in rows:
            table.add_row(*map(_as_it_is, row))
        console.print(table)
        return
    for *first, last in rows:
        console.print(Text("  ").join(_as_it_is(cell) for cell in first if len(cell)))
        console.print(Padding(_as_it_is(last), (0, 0, 1 if apart else 0, 2)), overflow="fold")


def _as_it_is(cell: str | Text) -> Text:
    """Return a cell whose brackets are not markup, and whose control characters are escaped."""
    from rich.text import Text

    if isinstance(cell, Text):
        return cell
    shown = (sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in cell)
    return Text("".join(shown))
