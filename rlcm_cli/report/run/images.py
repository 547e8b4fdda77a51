"""The images of a run as PNG files, with a table that says what each is and how it was scored."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcm_cli.errors import MissingFileError
from rlcm_cli.pictures.contact_sheet import to_picture, write_png
from rlcm_cli.store.atomic import replace_bytes
from rlcm_cli.store.layout import RunLayout
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import is_pruned, missing_shards, read_images, read_shard_rewards
from rlcm_cli.wording import command, slug

INDEX = "images.csv"


def export_images(layout: RunLayout, folder: Path, iteration: int) -> Iterator[Path]:
    """Write the sampled images of an iteration into a folder, and `images.csv` next to them.

    The table has a line an image: file, rollout, sample, task, prompt, seed, and a column for each reward that
    it was given. Yields the path of each image as it is written, the table's last. Raises `MissingFileError`
    where the iteration was not sampled or is pruned.
    """
    if iteration not in layout.iterations():
        raise MissingFileError(
            f"{layout.rollout(iteration)}: there is no such rollout; `{command('inspect', layout.root)}` lists them"
        )
    manifest = read_manifest(layout.manifest(iteration))
    if is_pruned(layout, manifest):
        raise MissingFileError(f"{layout.rollout(iteration)}: was pruned (--keep-rollouts), so its images are gone")
    absent = missing_shards(layout, manifest)
    rows: list[Mapping[str, Any]] = []
    for number in range(len(manifest.shards)):
        if number in absent:
            continue
        shard = read_images(layout, manifest, number)
        start, stop = manifest.shards[number]
        rewards = read_shard_rewards(layout, manifest, number)
        for row, sample in enumerate(range(start, stop)):
            prompt = manifest.prompt_of(sample)
            path = folder / f"{iteration:06d}-{sample:05d}-{slug(prompt) or 'image'}.png"
            write_png(path, to_picture(shard.images[row]))
            rows.append(
                {
                    "file": path.name,
                    "rollout": iteration,
                    "sample": sample,
                    "task": manifest.tasks[manifest.task_of(sample)],
                    "prompt": prompt,
                    "seed": int(shard.seed[row]),
                    **{name: values[sample] for name, values in rewards.items() if sample in values},
                }
            )
            yield path
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writerow({column: _guard(column) for column in columns})
    writer.writerows({column: _guard(value) for column, value in row.items()} for row in rows)
    replace_bytes(folder / INDEX, text.getvalue().encode())
    yield folder / INDEX


def _guard(cell: Any) -> Any:
    """Return a cell that no spreadsheet computes: it takes a text that starts like a formula for one."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in ("=", "+", "-", "@") and cell.strip() else cell
