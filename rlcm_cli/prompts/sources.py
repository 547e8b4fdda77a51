"""Prompts from built-in sets, text files, table files and dataset repositories.

csv and jsonl are read with the standard library, parquet with pyarrow: `datasets` would take a prompt "NA"
for a missing value, a path with brackets for a glob pattern, and would keep a copy of the file in its cache.
It reads everything else (`hf:`).
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os.path
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError

PROMPT_SETS: tuple[str, ...] = ("simple_animals", "imagenet_animals", "animal_activities", "animals_on_colours")
"""Names of the built-in sets: 45 prompts "cat", 398 "tench", 135 "a cat washing the dishes", 135 "a cat on blue"."""

_SETS_FOLDER = Path(__file__).parent / "sets"
_TABLE_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


def load_prompts(source: str) -> tuple[str, ...]:
    r"""Read a prompt set: stripped of white space, without blanks and duplicates, in the order of the source.

    Args:
        source: One of
            a built-in set: `simple_animals`, `imagenet_animals`, `animal_activities`, `animals_on_colours`;
            a UTF-8 text file with one prompt a line, blank lines and lines that start with `#` skipped;
            a column of a table file: `PATH.csv:COLUMN`, `PATH.jsonl:COLUMN`, `PATH.parquet:COLUMN`, or with
            any file name `csv:PATH:COLUMN` and so on (`C:\x.csv:caption` is a path and a column, too);
            a column of a dataset: `hf:NAME:COLUMN` reads the train split, `hf:OWNER/NAME/SPLIT:COLUMN`
            another split, `hf:OWNER/NAME/CONFIG/SPLIT:COLUMN` one of several configurations. NAME is a
            repository of the hub or a local folder that `datasets.load_dataset` understands.

    Returns:
        At least one prompt.

    Raises:
        ConfigError: If the source is unknown, missing, unreadable, not UTF-8, lacks the column, holds other
            things than text there, or holds no prompt; or if the hub cannot be reached.
    """
    prompts = tuple(dict.fromkeys(text for value in _read(source) if (text := value.strip())))
    if not prompts:
        raise ConfigError(f"prompts {source!r}: there is no prompt in it; write at least one")
    return prompts


def _read(source: str) -> Iterable[str]:
    if source in PROMPT_SETS:
        return _read_lines(_SETS_FOLDER / f"{source}.txt")
    scheme, _, rest = source.partition(":")
    if scheme == "hf":
        return _read_dataset(source, *_split_column(source, rest))
    if scheme in _TABLE_SUFFIXES.values():
        path, column = _split_column(source, rest)
        return _read_table(source, scheme, Path(path), column)
    path, _, column = source.rpartition(":")
    if kind := _TABLE_SUFFIXES.get(Path(path).suffix.lower()):
        return _read_table(source, kind, Path(path), column)
    if kind := _TABLE_SUFFIXES.get(Path(source).suffix.lower()):
        raise ConfigError(f"prompts {source!r}: a {kind} file needs a column; write {source}:COLUMN")
    if not os.path.exists(source):
        nearest = difflib.get_close_matches(source, PROMPT_SETS, n=1)
        raise ConfigError(
            f"prompts {source!r} is neither a built-in set ({', '.join(PROMPT_SETS)}) nor a file here"
            + (f"; did you mean {nearest[0]!r}?" if nearest else "; check the path")
        )
    return _read_lines(Path(source))


def _split_column(source: str, rest: str) -> tuple[str, str]:
    # From the right, since C:\x.csv has a colon of its own; what it leaves behind as a column has a slash.
    place, _, column = rest.rpartition(":")
    if not place or not column or "/" in column or "\\" in column:
        scheme = source.partition(":")[0]
        raise ConfigError(f"prompts {source!r}: the column is missing; write {scheme}:{rest or 'NAME'}:COLUMN")
    return place, column


def _read_lines(path: Path) -> Iterable[str]:
    return (line for line in _read_text(path).split("\n") if not line.lstrip().startswith("#"))


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig: Windows editors put a byte order mark before the first prompt.
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"prompt file {path} is not there; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"prompt file {path} cannot be read: {error.strerror}") from error


def _read_table(source: str, kind: str, path: Path, column: str) -> list[str]:
    readers = {"csv": _csv_column, "jsonl": _jsonl_column, "parquet": _parquet_column}
    columns, values = readers[kind](path, column)
    _check_column(source, column, columns)
    return _texts(source, column, values)


def _csv_column(path: Path, column: str) -> tuple[Sequence[str], Iterable[Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        # The line number of the DictReader itself is that of the last good row.
        line = reader.reader.line_num
        raise ConfigError(f"prompt file {path}, line {line}: no csv ({error}); mend it") from error
    return reader.fieldnames or (), (row.get(column) for row in rows)


def _jsonl_column(path: Path, column: str) -> tuple[Sequence[str], Iterable[Any]]:
    rows: list[dict[str, Any]] = []
    # Not splitlines(): a JSON string may hold U+2028, which that takes for the end of a line.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"prompt file {path}, line {number}: no JSON ({error.msg}, column {error.colno}); mend it"
            ) from error
        if not isinstance(row, dict):
            raise ConfigError(f"prompt file {path}, line {number}: no JSON object; write {{{column!r}: …}}")
        rows.append(row)
    return list(dict.fromkeys(name for row in rows for name in row)), (row.get(column) for row in rows)


def _parquet_column(path: Path, column: str) -> tuple[Sequence[str], Iterable[Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with path.open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            columns = list(parquet.schema_arrow.names)
            values = parquet.read([column])[column].to_pylist() if column in columns else []
    except FileNotFoundError as error:
        raise ConfigError(f"prompt file {path} is not there; check the path") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"prompt file {path} cannot be read as parquet: {_one_line(error)}") from error
    return columns, values


def _read_dataset(source: str, name: str, column: str) -> list[str]:
    import datasets

    parts = name.split("/")
    if Path(name).is_dir() or len(parts) < 3:
        repository, configuration, split = name, None, "train"
    elif len(parts) < 5:
        repository, split = "/".join(parts[:2]), parts[-1]
        configuration = parts[2] if len(parts) == 4 else None
    else:
        raise ConfigError(f"prompts {source!r}: there is no such folder; write hf:OWNER/NAME/CONFIG/SPLIT:COLUMN")
    try:
        dataset = datasets.load_dataset(repository, configuration, split=split)
    except ConnectionError as error:
        raise ConfigError(
            f"prompts {source!r}: the hub cannot be reached ({_one_line(error)}); check the network, or "
            f"use a file or a built-in set ({', '.join(PROMPT_SETS)})"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"prompts {source!r}: `datasets` cannot load it ({_one_line(error)}); check name, split and access"
        ) from error
    _check_column(source, column, dataset.column_names)
    return _texts(source, column, dataset[column])


def _check_column(source: str, column: str, columns: Sequence[str]) -> None:
    if column not in columns:
        raise ConfigError(
            f"prompts {source!r}: there is no column {column!r}; "
            + (f"name one of {', '.join(map(repr, columns))}" if columns else "the table has no column at all")
        )


def _texts(source: str, column: str, values: Iterable[Any]) -> list[str]:
    texts = [value for value in values if value is not None]
    for value in texts:
        if not isinstance(value, str):
            raise ConfigError(
                f"prompts {source!r}: column {column!r} holds {type(value).__name__} values, not text; "
                "name a column of text"
            )
    return texts


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
