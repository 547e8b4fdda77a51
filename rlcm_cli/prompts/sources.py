"""Prompts from built-in sets, text files, table files and dataset repositories."""

from __future__ import annotations

import contextlib
import difflib
import json
import os.path
from collections.abc import Iterable
from pathlib import Path

from rlcm_cli.errors import ConfigError
from rlcm_cli.foreign.hub import find_hub_fault, reachable_or_offline
from rlcm_cli.prompts.named_sets import NAMED_SETS, read_named, split_name
from rlcm_cli.prompts.tables import TABLE_SUFFIXES, Table, parse_json, read_table, read_texts
from rlcm_cli.prompts.text import read_text
from rlcm_cli.wording import one_line

PROMPT_SETS: tuple[str, ...] = ("simple_animals", "imagenet_animals", "animal_activities", "animals_on_colours")
"""Names of the built-in sets: 45 prompts "cat", 398 "tench", 135 "a cat washing the dishes", 135 "a cat on blue"."""

NOT_TEXT = (".yaml", ".yml", ".toml", ".xml", ".html", ".xlsx", ".xls", ".ods", ".arrow", ".gz", ".zip", ".zst", ".py")
"""Suffixes of files whose lines are no prompts."""

_SETS_FOLDER = Path(__file__).parent / "sets"


def load_prompts(source: str) -> tuple[str, ...]:
    r"""Read a prompt set: stripped of white space, without duplicates, in the order of the source.

    Args:
        source: One of
            a built-in set: `simple_animals`, `imagenet_animals`, `animal_activities`, `animals_on_colours`;
            a text file with one prompt a line, blank lines and lines that start with `#` skipped, in UTF-8 (or UTF-16
            with its byte order mark);
            a JSON file that holds an array of prompts;
            a column of a table file: `PATH.csv:COLUMN`, and so for .tsv, .json, .jsonl and .parquet, or with
            any file name `csv:PATH:COLUMN` and so on (`C:\x.csv:caption` is a path and a column, too);
            a named set, such as `drawbench`, read from the hub, or `NAME:PATH` with a copy of it (`NAMED_SETS`);
            a column of a dataset: `hf:NAME:COLUMN` reads the train split, `hf:OWNER/NAME/SPLIT:COLUMN`
            another split, `hf:OWNER/NAME/CONFIG/SPLIT:COLUMN` one of several configurations. NAME is a
            repository of the hub or a local folder that `datasets.load_dataset` understands.

    Returns:
        At least one prompt.

    Raises:
        ConfigError: If the source is unknown, missing, unreadable, in another encoding, lacks the column, has a row
            with something else than text there or with nothing, or holds no prompt; or if the hub cannot be reached.
    """
    prompts = tuple(dict.fromkeys(text for value in _read(source) if (text := value.strip())))
    if not prompts:
        raise ConfigError(f"prompts {source!r}: there is no prompt in it; write at least one")
    return prompts


def _read(source: str) -> Iterable[str]:
    if source in PROMPT_SETS:
        return _read_lines(_SETS_FOLDER / f"{source}.txt")
    if named := split_name(source):
        return read_named(*named)
    scheme, _, rest = source.partition(":")
    if scheme == "hf":
        return _read_dataset(source, *_split_column(source, rest))
    if scheme in TABLE_SUFFIXES.values():
        path, column = _split_column(source, rest)
        return read_table(scheme, Path(path), [column]).texts(column)
    path, _, column = source.rpartition(":")
    if kind := TABLE_SUFFIXES.get(Path(path).suffix.lower()):
        return read_table(kind, Path(path), [column]).texts(column)
    suffix = Path(source).suffix.lower()
    if suffix == ".json":
        return _read_array(source)
    if kind := TABLE_SUFFIXES.get(suffix):
        raise ConfigError(f"prompts {source!r}: a {kind} file needs a column; write {source}:COLUMN")
    if not os.path.exists(source):
        nearest = difflib.get_close_matches(source, [*PROMPT_SETS, *NAMED_SETS], n=1)
        raise ConfigError(
            f"prompts {source!r} is neither a built-in set ({', '.join(PROMPT_SETS)}), a named set "
            f"({', '.join(NAMED_SETS)}) nor a file here"
            + (f"; did you mean {nearest[0]!r}?" if nearest else "; check the path")
        )
    if suffix in NOT_TEXT:
        raise ConfigError(
            f"prompts {source!r}: a {suffix} file is not a list of prompts; write a text file with a prompt a line, "
            "or a table as .csv, .jsonl or .parquet"
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
    text = read_text(path)
    _refuse_json(path, text)
    # All three ends of lines, but not U+2028 and its like, which splitlines() takes for some, too.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return (line for line in lines if not line.lstrip().startswith("#"))


def _refuse_json(path: Path, text: str) -> None:
    """Raise `ConfigError` for JSON under another name, each line of which would be a prompt."""
    for part, kind in ((text, "json"), (text.lstrip().partition("\n")[0], "jsonl")):
        if part.lstrip()[:1] in ("[", "{"):
            try:
                found = json.loads(part)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) or (kind == "json" and found):
                raise ConfigError(
                    f"prompt file {path} holds JSON, not a prompt a line; name it FILE.{kind}"
                    + (", with :COLUMN behind it" if isinstance(found, dict) or isinstance(found[0], dict) else "")
                )


def _read_array(source: str) -> list[str]:
    """Read a JSON file that holds an array of texts."""
    file = f"prompt file {source}"
    found = parse_json(read_text(Path(source)), file)
    if not isinstance(found, list) or any(isinstance(item, dict) for item in found):
        raise ConfigError(
            f"{file}: holds no array of prompts; write {source}:COLUMN for an array of objects or an object of arrays"
        )
    return read_texts(file, "prompt", [(f"item {number}", item) for number, item in enumerate(found)])


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
    if Path(name).is_dir() and any(mark in str(Path(name).resolve()) for mark in "*?["):
        raise ConfigError(
            f"prompts {source!r}: `datasets` takes *, ? and [ in a folder's name for a pattern; rename the folder"
        )
    try:
        with reachable_or_offline() if not Path(name).is_dir() else contextlib.nullcontext():
            dataset = datasets.load_dataset(repository, configuration, split=split)
    except ConnectionError as error:
        fault = find_hub_fault() or f"the connection to the hub failed ({one_line(error)})"
        raise ConfigError(
            f"prompts {source!r}: {fault}; no local copy of {repository} in the cache; check the network, or use a "
            f"file or a built-in set ({', '.join(PROMPT_SETS)})"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"prompts {source!r}: `datasets` cannot load it ({one_line(error)}); check name, split and access"
        ) from error
    values = dataset[column] if column in dataset.column_names else ()
    rows = [(f"row {number}", {column: value}) for number, value in enumerate(values)]
    return Table(f"prompts {source!r}", dataset.column_names, rows).texts(column)
