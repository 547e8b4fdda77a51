"""The images of an iteration as files, with a table that any spreadsheet opens."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from store_samples import REWARD, make_manifest, write_rollout

from rlcm_cli.errors import MissingFileError
from rlcm_cli.report.run.images import INDEX, export_images
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import read_images
from rlcm_cli.store.run import prune_rollouts


@pytest.fixture
def layout(tmp_path):
    found = RunLayout(tmp_path / "run")
    write_rollout(found, make_manifest())
    return found


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / INDEX).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_is_a_file_with_its_pixels_and_a_row(layout, tmp_path):
    written = list(export_images(layout, tmp_path / "out", 0))
    assert written[-1] == tmp_path / "out" / INDEX
    rows = rows_of(tmp_path / "out")
    assert [row["file"] for row in rows] == [path.name for path in written[:-1]]
    assert rows[0]["file"] == "000000-00000-cat.png"
    manifest = read_manifest(layout.manifest(0))
    for number, (start, stop) in enumerate(manifest.shards):
        shard = read_images(layout, manifest, number)
        for place, sample in enumerate(range(start, stop)):
            row = rows[sample]
            assert (row["rollout"], row["sample"], row["task"]) == ("0", str(sample), "compression")
            assert (row["prompt"], row["seed"]) == (manifest.prompt_of(sample), str(int(shard.seed[place])))
            assert float(row[REWARD]) == pytest.approx(sample / 10)
            with Image.open(tmp_path / "out" / row["file"]) as picture:
                expected = np.asarray(shard.images[place]).transpose(1, 2, 0)
                assert np.array_equal(np.asarray(picture), expected)


def test_a_shard_that_is_not_there_yet_is_left_out(layout, tmp_path):
    shard = layout.shard(0, 1, 2)
    shard.unlink(), receipt_path(shard).unlink()
    list(export_images(layout, tmp_path / "out", 0))
    assert [row["sample"] for row in rows_of(tmp_path / "out")] == ["0", "1", "2", "3"]


def test_an_iteration_without_rewards_has_no_columns_of_them(layout, tmp_path):
    for file in (layout.rollout(0) / "rewards").rglob("*.*"):
        file.unlink()
    list(export_images(layout, tmp_path / "out", 0))
    assert list(rows_of(tmp_path / "out")[0]) == ["file", "rollout", "sample", "task", "prompt", "seed"]


@pytest.mark.parametrize("prompt", ["=1+1", "+x", " -x", "@cmd"])
def test_no_prompt_is_a_formula(tmp_path, prompt):
    layout = RunLayout(tmp_path / "run")
    write_rollout(layout, make_manifest(prompts=(prompt, "a - b", "…", "cow")))
    list(export_images(layout, tmp_path / "out", 0))
    prompts = [row["prompt"] for row in rows_of(tmp_path / "out")[::2]]
    assert prompts == [f"'{prompt}", "a - b", "…", "cow"]
    assert (tmp_path / "out" / "000000-00004-image.png").exists()


def test_what_was_not_sampled_or_is_pruned_is_told(layout, tmp_path):
    with pytest.raises(MissingFileError, match=r"rollouts/000007: there is no such rollout; `rlcm inspect .*` lists"):
        list(export_images(layout, tmp_path / "out", 7))
    write_rollout(layout, make_manifest(1))
    prune_rollouts(layout, 1, 2)
    with pytest.raises(MissingFileError, match=r"rollouts/000000: was pruned \(--keep-rollouts\)"):
        list(export_images(layout, tmp_path / "out", 0))
    assert not (tmp_path / "out").exists()
