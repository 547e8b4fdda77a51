"""Real images with captions: a folder of files, a parquet file, or a data set of the hub."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.pictures import PICTURE_SUFFIXES, PILLOW_ERRORS, PictureError, flatten_picture, open_picture
from rlcm_cli.prompts.tables import TABLE_SUFFIXES, read_table
from rlcm_cli.prompts.text import find_text_fault, read_text
from rlcm_cli.wording import one_line

FILE_NAME = "file_name"
"""Column of a metadata file with the image's path from the metadata file on, as `datasets` has it."""
CAPTION_SUFFIXES = (".txt", ".caption")
"""Of a caption's file next to an image."""


class Rows(Protocol):
    """Images with captions, by number."""

    def __len__(self) -> int: ...

    def take(self, row: int) -> tuple[Any, str]:
        """Return an image (Pillow's, in RGB) and its caption. Raises `ConfigError`."""

    @property
    def digest(self) -> str:
        """SHA-256 that tells these images and captions from others; empty where nothing tells."""


@dataclass(frozen=True)
class Pairs:
    """A data set of images with captions, decoded when they are taken."""

    source: str
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """SHA-256 that tells these images and captions from others; empty where nothing tells."""
        return self.rows.digest

    def take(self, chosen: Sequence[int]) -> tuple[list[Any], list[str]]:
        """Return images (`PIL.Image.Image` in RGB) and captions of some rows.

        Raises `ConfigError` for a row without an image or a text.
        """
        images, captions = zip(*(self.rows.take(row) for row in chosen), strict=True)
        return list(images), list(captions)


def open_pairs(source: str, *, image_column: str, caption_column: str) -> Pairs:
    """Open images with captions.

    Args:
        source: A folder of images, with a metadata.csv, .jsonl or .parquet that has the columns file_name and
            caption_column, or with a caption next to each image, of the same name in .txt or .caption;
            `PATH.parquet`; or a data set of the hub: NAME, OWNER/NAME, OWNER/NAME/SPLIT or OWNER/NAME/CONFIG/SPLIT,
            by default its train split.
        image_column: Column of the images; of a folder not asked for.
        caption_column: Column of the captions.

    Raises:
        ConfigError: If it is not there, cannot be read, lacks a column, or holds nothing.
    """
    if Path(source).is_dir():
        rows: Rows = _read_folder(source, caption_column)
    else:
        rows = _open_dataset(source, image_column, caption_column)
    if not len(rows):
        raise ConfigError(f"pretraining.source {source!r}: holds no image; name another")
    return Pairs(source, rows)


@dataclass(frozen=True)
class _Files:
    """Images of a folder."""

    source: str
    files: Sequence[Path]
    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, row: int) -> tuple[Any, str]:
        try:
            return open_picture(self.files[row]), self.captions[row]
        except PictureError as error:
            raise ConfigError(f"pretraining.source {self.source!r}: {self.files[row]} {error}") from error

    @cached_property
    def digest(self) -> str:
        root = Path(self.source)
        pairs = [
            (file.relative_to(root).as_posix(), _digest_file(file), caption)
            for file, caption in zip(self.files, self.captions, strict=True)
        ]
        return digest_json(sorted(pairs))


def _digest_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_folder(source: str, caption_column: str) -> _Files:
    folder = Path(source)
    metadata = _find_metadata(folder)
    if metadata is None and _find_metadata(folder / "train") is not None:  # by splits, as `datasets` has them
        folder = folder / "train"
        metadata = _find_metadata(folder)
    files, captions = _read_metadata(source, metadata, caption_column) if metadata else _read_captions(source, folder)
    for file in files:
        if not file.is_file():
            broken = "is a broken link" if file.is_symlink() else "is not there"
            raise ConfigError(f"pretraining.source {source!r}: {file} {broken}; put it there, or take out its row")
    return _Files(source, files, captions)


def _find_metadata(folder: Path) -> Path | None:
    return next(
        (folder / f"metadata{kind}" for kind in TABLE_SUFFIXES if (folder / f"metadata{kind}").is_file()), None
    )


def _read_metadata(source: str, metadata: Path, caption_column: str) -> tuple[list[Path], list[str]]:
    what = f"pretraining.source {source!r}:"
    table = read_table(TABLE_SUFFIXES[metadata.suffix], metadata, [FILE_NAME, caption_column], what)
    if caption_column not in table.columns:
        raise ConfigError(
            f"{table.file}: there is no column {caption_column!r}; set pretraining.caption_column to one of "
            f"{', '.join(map(repr, table.columns))}"
        )
    names = table.texts(FILE_NAME)
    for (place, _), name in zip(table.rows, names, strict=True):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{table.file}, {place}: '{name}' leads out of the folder; put the image into it")
    return [metadata.parent / name for name in names], table.texts(caption_column)


def _read_captions(source: str, folder: Path) -> tuple[list[Path], list[str]]:
    """Read a caption next to each image, as trainers of LoRAs have them."""
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith(".") and not file.is_dir()
    )
    if not files:
        raise ConfigError(f"pretraining.source {source!r}: holds no image; name another")
    captions = []
    for file in files:
        beside = [file.with_suffix(suffix) for suffix in CAPTION_SUFFIXES if file.with_suffix(suffix).is_file()]
        if not beside:
            raise ConfigError(
                f"pretraining.source {source!r}: {file.name} has no caption; put a metadata.csv with the columns "
                f"{FILE_NAME} and text into the folder, or a caption into {file.with_suffix('.txt').name}"
            )
        caption = " ".join(read_text(beside[0], f"pretraining.source {source!r}: caption").split())
        if not caption:
            raise ConfigError(f"pretraining.source {source!r}: the caption {beside[0].name} is empty; write one")
        captions.append(caption)
    return files, captions


@dataclass(frozen=True)
class _Dataset:
    """Rows of `datasets`."""

    source: str
    rows: Any
    """`datasets.Dataset`."""
    image_column: str
    caption_column: str

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, row: int) -> tuple[Any, str]:
        try:
            found = self.rows[row]
            image, caption = found[self.image_column], found[self.caption_column]
            image = image and flatten_picture(image)
        except PictureError as error:
            raise ConfigError(f"pretraining.source {self.source!r}: the image of row {row} {error}") from error
        except PILLOW_ERRORS as error:
            raise ConfigError(
                f"pretraining.source {self.source!r}: row {row} cannot be read ({one_line(error)}); correct it"
            ) from error
        if image is None or not isinstance(caption, str) or not caption.strip():
            held = f"{type(caption).__name__}" if not isinstance(caption, str) else "an empty text"
            raise ConfigError(
                f"pretraining.source {self.source!r}: row {row} lacks an image or has {held} for a caption; correct "
                "the row, or name another caption_column"
            )
        if fault := find_text_fault(caption):
            raise ConfigError(f"pretraining.source {self.source!r}: the caption of row {row} {fault}; correct it")
        return image, caption

    @cached_property
    def digest(self) -> str:
        path = Path(self.source)
        if path.is_file():
            return _digest_file(path)
        # Of the hub, each address holds the commit that was downloaded.
        checksums = self.rows.info.download_checksums or {}
        return digest_json(sorted(checksums)) if checksums else ""


def _open_dataset(source: str, image_column: str, caption_column: str) -> _Dataset:
    rows = _load(source)
    for key, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in rows.column_names:
            raise ConfigError(
                f"pretraining.source {source!r}: there is no column {column!r}; set pretraining.{key} to one of "
                f"{', '.join(map(repr, rows.column_names))}"
            )
    return _Dataset(source, _with_images(source, rows, image_column), image_column, caption_column)


def _load(source: str) -> Any:
    import datasets

    path, parts = Path(source), source.split("/")
    arguments: dict[str, Any]
    if path.suffix == ".parquet":
        if not path.is_file():
            raise ConfigError(f"pretraining.source {source!r}: there is no such file; check the path")
        # `datasets` takes brackets for a pattern.
        arguments = {"path": "parquet", "data_files": glob.escape(source), "split": "train"}
    elif path.exists():
        raise ConfigError(f"pretraining.source {source!r}: is neither a folder of images nor a .parquet file")
    elif len(parts) < 5:
        arguments = {
            "path": "/".join(parts[:2]),
            "name": parts[2] if len(parts) == 4 else None,
            "split": parts[-1] if len(parts) > 2 else "train",
        }
    else:
        raise ConfigError(f"pretraining.source {source!r}: there is no such folder; check the path")
    try:
        return datasets.load_dataset(**arguments)
    except ConnectionError as error:
        raise ConfigError(
            f"pretraining.source {source!r}: no folder or .parquet file here, and the hub cannot be reached "
            f"({one_line(error)}); check the path or the network"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"pretraining.source {source!r}: `datasets` cannot load it ({one_line(error)}); name a folder of images "
            "with a metadata.csv, a .parquet file, or a data set of the hub"
        ) from error


def _with_images(source: str, rows: Any, column: str) -> Any:
    """Have a column decoded as images, also where a parquet file does not say that it holds some."""
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    if isinstance(rows.features[column], datasets.Image):
        return rows
    try:
        return rows.cast_column(column, datasets.Image())
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"pretraining.source {source!r}: column {column!r} holds no images ({one_line(error)}); set "
            "pretraining.image_column to the one that does"
        ) from error
