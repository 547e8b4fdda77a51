"""Tables in files: CSV, TSV, JSON, JSON lines and parquet.

CSV and JSON are read with the standard library, parquet with pyarrow: `datasets` would take a prompt "NA" for a
missing value, a path with brackets for a glob pattern, and would keep a copy of the file in its cache.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.text import find_text_fault, read_text
from rlcm_cli.wording import one_line

TABLE_SUFFIXES: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
"""Suffix of a file's name → kind of table."""


@dataclass(frozen=True)
class Table:
    """Columns of a file."""

    file: str
    """What messages call it, such as `prompt file x.csv`."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Any]]]
    """Of each row where it stands, such as `line 3`, and its cells; a missing cell is None or left out."""

    def texts(self, column: str) -> list[str]:
        """Return a column of text, one a row, stripped of white space.

        Raises `ConfigError` where the column is missing, or a row has something else there, or nothing.
        """
        if column not in self.columns:
            raise ConfigError(f"{self.file}: there is no column '{column}'; {_name_columns(self.columns)}")
        return read_texts(self.file, column, [(place, cells.get(column)) for place, cells in self.rows])


def read_texts(file: str, column: str, values: Iterable[tuple[str, Any]]) -> list[str]:
    """Check and strip the texts of a column. Raises `ConfigError` that names the first place at fault."""
    found = list(values)
    for place, value in found:
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"{file}, {place}: column '{column}' holds {type(value).__name__} values, not text; name a column of "
                "text"
            )
    empty = [place for place, value in found if not (value or "").strip()]
    if empty:
        raise ConfigError(
            f"{file}, {empty[0]}: there is nothing in column '{column}' ({len(empty)} of {len(found)} rows are so); "
            "fill it in, or take the row out"
        )
    for place, value in found:
        if fault := find_text_fault(value):
            raise ConfigError(f"{file}, {place}: column '{column}' {fault}; correct it")
    return [value.strip() for _, value in found]


def read_table(kind: str, path: Path, columns: Sequence[str], what: str = "prompt file") -> Table:
    """Read a file of a kind in `TABLE_SUFFIXES`; of parquet, only the named columns.

    Raises:
        ConfigError: If it is missing, unreadable or damaged, naming the line.
    """
    if kind == "parquet":
        return _read_parquet(path, columns, what)
    readers: Mapping[str, Callable[[str, str], Table]] = {
        "csv": read_csv,
        "tsv": _read_tsv,
        "jsonl": _read_json_lines,
        "json": _read_json,
    }
    return readers[kind](read_text(path, what), f"{what} {path}")


def read_csv(text: str, file: str, delimiter: str = ",") -> Table:
    """Read CSV; rows without any text are left out.

    Raises `ConfigError` for text that is not CSV, a repeated column, and a row with more cells than columns.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    rows: list[tuple[str, Mapping[str, Any]]] = []
    try:
        columns = [name for name in reader.fieldnames or () if name.strip()]
        for name in columns:
            if columns.count(name) > 1:
                raise ConfigError(f"{file}, line 1: column '{name}' is there twice; leave one out")
        for row in reader:
            place = f"line {reader.line_num}"
            if any(isinstance(cells, list) for cells in row.values()):
                quoting = "a comma" if delimiter == "," else "a tab"
                raise ConfigError(
                    f"{file}, {place}: has more cells than there are columns; put a text with {quoting} in it in "
                    'double quotes, "…"'
                )
            if any((cell or "").strip() for cell in row.values()):
                rows.append((place, row))
    except csv.Error as error:
        # The line number of the DictReader itself is that of the last good row.
        raise ConfigError(
            f"{file}, line {reader.reader.line_num}: not {'CSV' if delimiter == ',' else 'TSV'} ({error}); correct it"
        ) from error
    return Table(file, columns, rows)


def _read_tsv(text: str, file: str) -> Table:
    return read_csv(text, file, delimiter="\t")


def _read_json_lines(text: str, file: str) -> Table:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    # Not splitlines(): a JSON string may hold U+2028, which that takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        row = parse_json(line, f"{file}, {place}")
        if not isinstance(row, dict):
            raise ConfigError(f'{file}, {place}: no JSON object; write {{"COLUMN": "…"}}')
        rows.append((place, row))
    return Table(file, _columns_of(rows), rows)


def _read_json(text: str, file: str) -> Table:
    """Read an array of objects, or an object of arrays, as pandas writes both."""
    found = parse_json(text, file)
    rows: list[tuple[str, Mapping[str, Any]]] = []
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        rows = [(f"object {number}", row) for number, row in enumerate(found)]
        return Table(file, _columns_of(rows), rows)
    if isinstance(found, dict) and len({len(column) for column in found.values() if isinstance(column, list)}) == 1:
        columns = {name: column for name, column in found.items() if isinstance(column, list)}
        rows = [
            (f"item {number}", dict(zip(columns, cells, strict=True)))
            for number, cells in enumerate(zip(*columns.values(), strict=True))
        ]
        return Table(file, list(columns), rows)
    raise ConfigError(f'{file}: holds no table; write [{{"COLUMN": "…"}}, …]')


def parse_json(text: str, file: str) -> Any:
    """Read JSON. Raises `ConfigError`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ConfigError(f"{file}: no JSON ({error.msg}, {line}column {error.colno}); correct it") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        raise ConfigError(f"{file}: no JSON that can be read ({type(error).__name__}); correct it") from error


def _read_parquet(path: Path, columns: Sequence[str], what: str) -> Table:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with path.open("rb") as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            names = list(parquet.schema_arrow.names)
            read = parquet.read([name for name in columns if name in names]).to_pylist()
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} is not there; check the path") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: bytes that are no UTF-8
        reason = one_line(error)
        raise ConfigError(f"{what} {path} cannot be read as parquet: {reason}") from error
    return Table(f"{what} {path}", names, [(f"row {number}", row) for number, row in enumerate(read)])


def _columns_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(name for _, row in rows for name in row))


def _name_columns(columns: Sequence[str]) -> str:
    if not columns:
        return "the table has no column at all"
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
        return f"its only column is {columns[0]!r}: separate the cells by commas, or name a file with tabs FILE.tsv"
    return f"name one of {', '.join(map(repr, columns))}"
