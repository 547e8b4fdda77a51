"""A comparison as text for other programs: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from rlcm_cli.report.compare.blocks import Cell, NumberBlock, Row, Table, arrange, define_terms, name_speed_ups

LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "–": "--",
    "…": r"\dots{}",
}
"""What LaTeX reads as something else, or does not have in all fonts → how it is written."""


def write_markdown(table: Table) -> str:
    """Write a comparison as Markdown: a table a block, then what the numbers are."""
    parts = []
    for title, header, rows in _list_tables(table):
        lines = [
            f"**{_escape_markdown(title)}**",
            "",
            _bar(header),
            _bar(["---", "---", *["---:"] * (len(header) - 2)]),
        ]
        parts.append("\n".join([*lines, *map(_bar, rows)]))
    notes = "\n".join(f"- {_escape_markdown(line)}" for line in _list_lines(table))
    return "\n\n".join([*parts, notes]) + "\n"


def write_latex(table: Table) -> str:
    r"""Write a comparison as LaTeX: a `tabular` of the package booktabs a block; what the numbers are as comments."""
    parts = [
        "% \\usepackage{booktabs}\n" + "\n".join(f"% {' '.join(line.split())}" for line in _list_lines(table)),
    ]
    for title, header, rows in _list_tables(table):
        lines = [
            f"% {' '.join(title.split())}",
            f"\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}",
            "\\toprule",
            _ampersands(header),
            "\\midrule",
            *map(_ampersands, rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def write_csv(table: Table) -> str:
    """Write a comparison as one table of plain numbers: rows `seed`, and for each method `mean`, `low` and `high`.

    `low` and `high` are the ends of the interval of the mean.
    """
    blocks = arrange(table)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["method", "run", "seed", "row", *(f"{block.key}: {name}" for block in blocks for name in block.columns)]
    )
    for number, row in enumerate(blocks[0].rows):
        cells = [cell for block in blocks for cell in block.rows[number].cells]
        for kind, value_of in _VALUES.items() if row.seed is None else [("seed", _value)]:
            values = ["" if (value := value_of(cell)) is None else repr(value) for cell in cells]
            writer.writerow([row.method, row.run, "" if row.seed is None else row.seed, kind, *values])
    return file.getvalue()


def _value(cell: Cell) -> float | None:
    return cell.value


_VALUES: Mapping[str, Callable[[Cell], float | None]] = {
    "mean": _value,
    "low": lambda cell: cell.interval[0] if cell.interval else None,
    "high": lambda cell: cell.interval[1] if cell.interval else None,
}


def _list_tables(table: Table) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, header and rows of each block, then of the settings that differ."""
    found = [(block.title, ["method", "seed", *block.columns.values()], list_texts(block)) for block in arrange(table)]
    if table["settings"]:
        labels = [method["label"] for method in table["methods"]]
        rows = [[row["setting"], *(row["values"][label] for label in labels)] for row in table["settings"]]
        found.append(("Settings that differ", ["setting", *labels], rows))
    return found


def list_texts(block: NumberBlock) -> list[list[str]]:
    """Return the rows of a block that people need, as text: method, seed, then the cells."""
    shown = [row for row in block.rows if row.is_shown]
    return [
        _texts(row, names=not number or shown[number - 1].method != row.method) for number, row in enumerate(shown)
    ]


def _texts(row: Row, *, names: bool) -> list[str]:
    return [row.method if names else "", row.named_seed, *(cell.text for cell in row.cells)]


def _list_lines(table: Table) -> list[str]:
    return [*define_terms(table), *name_speed_ups(table), *(f"note: {note}" for note in table["notes"])]


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escape_markdown, cells))} |"


def _escape_markdown(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join("".join(LATEX.get(letter, letter) for letter in cell) for cell in cells) + r" \\"
