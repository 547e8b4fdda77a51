"""Real images with captions, through `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcm_cli.errors import ConfigError


@dataclass(frozen=True)
class Pairs:
    """A data set of images with captions, decoded when they are taken."""

    source: str
    rows: Any
    """`datasets.Dataset`."""
    image_column: str
    caption_column: str

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Sequence[int]) -> tuple[list[Any], list[str]]:
        """Give images (`PIL.Image.Image`) and captions of some rows.

        Raises `ConfigError` for a row without an image or a text.
        """
        images, captions = [], []
        for row in chosen:
            try:
                found = self.rows[row]
            except (OSError, ValueError) as error:  # Pillow's for files that are no images
                raise ConfigError(
                    f"pretraining.source {self.source!r}: row {row} cannot be read ({_one_line(error)}); mend it"
                ) from error
            image, caption = found[self.image_column], found[self.caption_column]
            if image is None or not isinstance(caption, str):
                raise ConfigError(
                    f"pretraining.source {self.source!r}: row {row} lacks an image or has {type(caption).__name__} "
                    "for a caption, not text; mend the row, or name another caption_column"
                )
            images.append(image)
            captions.append(caption)
        return images, captions


def open_pairs(source: str, *, image_column: str, caption_column: str) -> Pairs:
    """Open images with captions.

    Args:
        source: A folder that `datasets` takes for an imagefolder (images, and a metadata.csv or metadata.jsonl with
            the columns file_name and caption_column), `PATH.parquet`, or a data set of the hub: NAME, OWNER/NAME,
            OWNER/NAME/SPLIT or OWNER/NAME/CONFIG/SPLIT, by default its train split.
        image_column: Column of the images; of an imagefolder `image`.
        caption_column: Column of the captions.

    Raises:
        ConfigError: If it is not there, cannot be read, lacks a column, or holds nothing.
    """
    rows = _load(source)
    for key, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in rows.column_names:
            raise ConfigError(
                f"pretraining.source {source!r}: there is no column {column!r}; set pretraining.{key} to one of "
                f"{', '.join(map(repr, rows.column_names))}"
            )
    if not len(rows):
        raise ConfigError(f"pretraining.source {source!r}: holds no image; name another")
    return Pairs(source, _with_images(source, rows, image_column), image_column, caption_column)


def _load(source: str) -> Any:
    import datasets

    path, parts = Path(source), source.split("/")
    arguments: dict[str, Any]
    if path.is_dir():
        arguments = {"path": "imagefolder", "data_dir": source, "split": "train"}
    elif path.suffix == ".parquet":
        if not path.is_file():
            raise ConfigError(f"pretraining.source {source!r}: there is no such file; check the path")
        arguments = {"path": "parquet", "data_files": source, "split": "train"}
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
            f"({_one_line(error)}); check the path or the network"
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"pretraining.source {source!r}: `datasets` cannot load it ({_one_line(error)}); name a folder of images "
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
            f"pretraining.source {source!r}: column {column!r} holds no images ({_one_line(error)}); set "
            "pretraining.image_column to the one that does"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
