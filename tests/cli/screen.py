"""What a terminal shows in the end of a text with the control sequences that rich's live display writes."""

from __future__ import annotations

import re

PIECE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def read_screen(written: str) -> str:
    """Give the lines on the screen and above it; columns are not wrapped."""
    lines, row, column = [""], 0, 0
    position = 0
    while position < len(written):
        piece = PIECE.match(written, position)
        assert piece, written[position : position + 10]
        position = piece.end()
        argument, command, control, text = piece.groups()
        if text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
        elif control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif command == "A":
            row = max(0, row - int(argument or 1))
        elif command == "K":
            lines[row] = ""
        else:
            assert command in "mhl", command  # colours; the cursor, hidden or shown
    return "\n".join(line.rstrip() for line in lines).rstrip("\n")
