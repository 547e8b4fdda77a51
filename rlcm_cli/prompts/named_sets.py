"""Prompt sets that the field reports by name. None is part of this package: the hub has them, or the user a copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcm_cli.errors import ConfigError
from rlcm_cli.foreign.hub import HubError, fetch_snapshot
from rlcm_cli.prompts.tables import TABLE_SUFFIXES, parse_json, read_table, read_texts
from rlcm_cli.prompts.text import read_text
from rlcm_cli.wording import join_words

HUB = "https://huggingface.co/datasets"
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class NamedSet:
    """Where the prompts of a set are, and under which terms."""

    title: str
    count: int
    """Number of its prompts, as published."""
    licence: str
    """SPDX identifier, or what is known."""
    source: str
    """Page of those who published it."""
    files: tuple[str, ...]
    """Names of its files, or patterns of them, from the root of the repository on."""
    columns: tuple[str, ...] = ("prompt",)
    """Of the prompts, where a file is a table: the first one that is there."""
    repository: str | None = None
    """Data set of the hub that holds the files; None: it is on no hub."""
    address: str = ""
    """Folder of the web that the files are in, for a set that is on no hub."""

    def describe(self) -> str:
        """Return title, size, licence and source in a line."""
        return f"{self.title}, {self.count:,} prompts, licence: {self.licence}, from {self.source}"


NAMED_SETS: Mapping[str, NamedSet] = {
    "drawbench": NamedSet(
        "DrawBench (Imagen)",
        200,
        "not stated",
        f"{HUB}/zhwang/HPDv2",
        ("benchmark/drawbench.json",),
        columns=("Prompts", "prompts", "prompt"),
        repository="zhwang/HPDv2",
    ),
    "parti_prompts": NamedSet(
        "PartiPrompts",
        1632,
        "Apache-2.0",
        "https://github.com/google-research/parti",
        ("PartiPrompts.tsv",),
        columns=("Prompt",),
        repository="nateraw/parti-prompts",
    ),
    "geneval": NamedSet(
        "GenEval",
        553,
        "MIT",
        "https://github.com/djghosh13/geneval",
        ("prompts/evaluation_metadata.jsonl",),
        address=f"{RAW}/djghosh13/geneval/main",
    ),
    "geneval2": NamedSet(
        "GenEval2",
        800,
        "CC-BY-NC-4.0",
        "https://github.com/facebookresearch/GenEval2",
        ("geneval2_data.jsonl",),
        address=f"{RAW}/facebookresearch/GenEval2/main",
    ),
    "ocr": NamedSet(
        "OCR test set of Flow-GRPO",
        1018,
        "MIT",
        "https://github.com/yifan123/flow_grpo",
        ("dataset/ocr/test.txt",),
        address=f"{RAW}/yifan123/flow_grpo/main",
    ),
    "hpd_v2": NamedSet(
        "HPDv2 benchmark (anime, concept art, paintings, photos)",
        3200,
        "Apache-2.0",
        f"{HUB}/ymhao/HPDv2",
        ("benchmark/anime.json", "benchmark/concept-art.json", "benchmark/paintings.json", "benchmark/photo.json"),
        repository="ymhao/HPDv2",
    ),
    "pick_a_pic": NamedSet(
        "Pick-a-Pic v1, unique test prompts",
        500,
        "not stated",
        f"{HUB}/yuvalkirstain/pickapic_v1_no_images",
        ("data/test_unique-*.parquet",),
        columns=("caption",),
        repository="yuvalkirstain/pickapic_v1_no_images",
    ),
}
"""Name → set. Some hold prompts that are not fit for everybody, such as those that people typed."""


def split_name(source: str) -> tuple[str, Path | None] | None:
    """Take `NAME` or `NAME:PATH` apart, where PATH is a copy of a named set; None: the source names none."""
    name, colon, path = source.partition(":")
    if name not in NAMED_SETS or (colon and not path):
        return None
    return name, Path(path) if colon else None


def read_named(name: str, copy: Path | None) -> list[str]:
    """Read the prompts of a named set from a copy, else from the hub.

    Args:
        name: One of `NAMED_SETS`.
        copy: One of its files, or a folder that holds them: a clone of its repository, or the files by themselves.

    Raises:
        ConfigError: If they are not there, cannot be had or are not what they should be.
    """
    found = NAMED_SETS[name]
    files = _find_files(name, found, copy) if copy is not None else _fetch(name, found)
    return [prompt for file in files for prompt in _read(file, found.columns)]


def _find_files(name: str, found: NamedSet, copy: Path) -> list[Path]:
    if copy.is_file():
        return [copy]
    if not copy.is_dir():
        raise ConfigError(f"prompts '{name}:{copy}': there is no such file or folder; {_say_where(name, found)}")
    files: list[Path] = []
    for pattern in found.files:
        own = sorted(copy.glob(pattern)) or sorted(copy.glob(pattern.rpartition("/")[2]))
        if not own:
            raise ConfigError(f"prompts '{name}:{copy}': the folder lacks {pattern}; {_say_where(name, found)}")
        files += own
    return files


def _fetch(name: str, found: NamedSet) -> list[Path]:
    if found.repository is None:
        raise ConfigError(f"prompts {name!r}: the set is on no hub; {_say_where(name, found)}")
    try:
        folder = fetch_snapshot(found.repository, kind="dataset", patterns=found.files)
    except HubError as error:
        raise ConfigError(
            f"prompts {name!r}: {error}; with a copy of {join_words(found.files)} here, write {name}:PATH"
        ) from None
    return _find_files(name, found, folder)


def _say_where(name: str, found: NamedSet) -> str:
    """Say how to get a set."""
    if found.repository is None:
        return f"download {found.address}/{found.files[0]} and write {name}:PATH"
    return f"name a copy of {join_words(found.files)} as {name}:PATH, or leave the path out to read it from the hub"


def _read(path: Path, columns: Sequence[str]) -> Iterable[str]:
    """Read the prompts of one file, in the form in which these sets are published."""
    suffix, what = path.suffix.lower(), f"prompt file {path}"
    if suffix == ".tsv":
        return _read_plain_table(read_text(path), columns, what)
    if suffix == ".json":
        found = parse_json(read_text(path), what)
        if not isinstance(found, list):
            raise ConfigError(f"{what}: holds no array of prompts; name a file as it was published")
        return read_texts(what, "prompt", [(f"item {number}", item) for number, item in enumerate(found)])
    if suffix in TABLE_SUFFIXES:
        table = read_table(TABLE_SUFFIXES[suffix], path, columns)
        return table.texts(next((name for name in columns if name in table.columns), columns[0]))
    if suffix == ".txt":
        return [line for line in read_text(path).splitlines() if line.strip()]
    raise ConfigError(f"{what}: is none of the set's files; name one that ends in .json, .jsonl, .tsv, .csv or .txt")


def _read_plain_table(text: str, columns: Sequence[str], what: str) -> list[str]:
    """Read a column of a table with tabs and without quoting: a prompt may begin with a quotation mark."""
    head, *lines = text.split("\n")
    names = head.rstrip("\r").split("\t")
    place = next((names.index(name) for name in columns if name in names), None)
    if place is None:
        raise ConfigError(f"{what}: there is no column {columns[0]!r}; name the file as it was published")
    rows = [(f"line {number}", line.split("\t")) for number, line in enumerate(lines, 2) if line.strip()]
    return read_texts(
        what, names[place], [(where, cells[place] if place < len(cells) else None) for where, cells in rows]
    )
