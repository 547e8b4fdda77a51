import errno
import json
import math
import os

import pytest
import safetensors
import torch
from metric_rows import make_row
from store_samples import (
    contents,
    edit_json,
    publish_run,
    write_checkpoint,
    write_lora,
    write_rollout,
    write_run,
)

from rlcm_cli.errors import CorruptFileError, ForeignFileError, MissingFileError, StorageFullError
from rlcm_cli.store.checkpoint import (
    LORA_FILE,
    MARKER_FILE,
    digest_safetensors,
    latest_checkpoint,
    publish_checkpoint,
    read_optimizer,
    read_statistics,
    read_trainer_state,
    read_weights,
)
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import publish_metrics, read_metrics
from rlcm_cli.store.run import prune_checkpoints, prune_rollouts, read_pruned


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "run")


def test_what_is_published_is_read_back(layout):
    write_checkpoint(layout, 3, 7.0)
    state = read_trainer_state(layout, 3)
    assert (state.number, state.optimizer_steps) == (3, 3)
    assert state.policy_digest == digest_safetensors(layout.checkpoint(3) / LORA_FILE)
    assert torch.equal(read_weights(layout, 3)["unet.to_q.lora_A.weight"], torch.full((2, 3), 7.0))
    assert torch.equal(read_optimizer(layout, 3)["exp_avg/to_q"], torch.full((2, 3), 3.5))
    assert read_statistics(layout, 3) == {"compression/odd": {"cat": (1.0, 2.0)}}


def test_the_marker_holds_a_digest_of_every_other_file_and_is_written_last(layout, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda source, target: None)  # what the folder holds is looked at before
    with pytest.raises(MissingFileError):
        write_checkpoint(layout, 0)
    monkeypatch.undo()
    write_checkpoint(layout, 0)
    folder = layout.checkpoint(0)
    files = json.loads((folder / MARKER_FILE).read_text())["files"]
    assert {*files, MARKER_FILE} == set(os.listdir(folder))
    assert max(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns).name == MARKER_FILE


def test_the_digest_of_a_lora_does_not_depend_on_the_order_of_its_metadata(tmp_path):
    tensor = torch.arange(4, dtype=torch.float32)
    header = {"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    keys = {"format": "pt", "a": "1", "b": "2"}
    digests = set()
    for order in (list(keys), list(reversed(keys))):
        text = json.dumps({"__metadata__": {key: keys[key] for key in order}, **header}).encode()
        path = tmp_path / "-".join(order)
        path.write_bytes(len(text).to_bytes(8, "little") + text + tensor.numpy().tobytes())
        digests.add(digest_safetensors(path))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 2
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["value", "metadata"])
def test_the_digest_of_a_lora_depends_on_its_values_and_its_alpha(tmp_path, change):
    digests = set()
    for value in (1, 2):
        write_lora(tmp_path, *([float(value)] if change == "value" else [1.0, {"unet.lora_alpha": value}]))
        digests.add(digest_safetensors(tmp_path / LORA_FILE))
    assert len(digests) == 2


def test_the_digest_of_no_safetensors_file_is_an_error(tmp_path):
    (tmp_path / "lora").write_bytes(b"nonsense")
    with pytest.raises(CorruptFileError, match="is not a readable safetensors file"):
        digest_safetensors(tmp_path / "lora")


def test_a_checkpoint_that_another_process_published_stays(layout):
    write_checkpoint(layout, 1, 1.0)
    before = contents(layout.root)
    write_checkpoint(layout, 1, 2.0)
    assert contents(layout.root) == before


def test_a_disk_that_is_full_for_safetensors_is_full_for_us(layout):
    publish_run(layout)

    def write(folder):
        raise safetensors.SafetensorError(
            f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"
        )

    with pytest.raises(StorageFullError, match=r"checkpoints/000001: not written, the disk is full"):
        publish_checkpoint(
            layout, 1, write_weights=write, model_digest="m", optimizer={}, optimizer_steps=0, statistics={}
        )
    assert os.listdir(layout.root / "checkpoints") == []


def test_another_fault_of_safetensors_is_left_as_it_is(layout):
    publish_run(layout)

    def write(folder):
        raise safetensors.SafetensorError("odd")

    with pytest.raises(safetensors.SafetensorError, match="odd"):
        publish_checkpoint(
            layout, 1, write_weights=write, model_digest="m", optimizer={}, optimizer_steps=0, statistics={}
        )


def test_the_newest_checkpoint_is_the_one_with_the_highest_number(layout):
    with pytest.raises(MissingFileError, match="holds no run yet"):
        latest_checkpoint(layout)
    for number in (0, 9, 1_000_000, 10):
        write_checkpoint(layout, number)
    assert latest_checkpoint(layout) == 1_000_000


class TestPruning:
    def test_of_rollouts_takes_the_shards_of_old_trained_iterations_and_nothing_else(self, tmp_path):
        layout = write_run(tmp_path, iterations=4)
        manifest = read_manifest(layout.manifest(3)).model_copy(update={"iteration": 4})
        write_rollout(layout, manifest)  # drawn, not trained yet
        before = contents(tmp_path)
        removed = prune_rollouts(layout, keep=2, trained=4)
        assert removed == [layout.shard(i, number, 2) for i in (0, 1) for number in (0, 1)]
        after = contents(tmp_path)
        assert {tmp_path / name for name in before.keys() - after.keys()} == set(removed)
        assert all(before[name] == data for name, data in after.items() if name != layout.pruned.name)
        assert read_pruned(layout).rollouts == (0, 1)
        assert all(receipt_path(shard).exists() for shard in removed)
        assert prune_rollouts(layout, keep=2, trained=4) == []

    def test_of_rollouts_keeps_a_record_without_a_receipt(self, tmp_path):
        layout = write_run(tmp_path, iterations=2)
        shard = layout.shard(0, 0, 2)
        receipt_path(shard).unlink()
        assert shard not in prune_rollouts(layout, keep=1, trained=2)
        assert shard.exists()

    def test_of_checkpoints_keeps_the_first_and_the_newest(self, tmp_path):
        layout = write_run(tmp_path, iterations=5)
        removed = prune_checkpoints(layout, keep=2)
        assert removed == [layout.checkpoint(number) for number in (1, 2, 3)]
        assert layout.checkpoints() == [0, 4, 5]
        assert sorted(os.listdir(tmp_path / "checkpoints")) == ["000000", "000004", "000005"]
        assert prune_checkpoints(layout, keep=2) == []
        assert prune_checkpoints(layout, keep=9) == []
        assert read_pruned(layout).checkpoints == (1, 2, 3)

    def test_leaves_the_metrics(self, tmp_path):
        layout = write_run(tmp_path, iterations=3)
        prune_rollouts(layout, keep=1, trained=3)
        prune_checkpoints(layout, keep=1)
        assert [row.iteration for row in read_metrics(layout)] == [0, 1, 2]


class TestMetrics:
    @pytest.fixture(autouse=True)
    def _run(self, layout):
        publish_run(layout)

    def test_the_lines_are_those_of_the_files_in_their_order(self, layout):
        for number in (1, 2, 3):
            publish_metrics(layout, make_row(number - 1))
        lines = [json.loads(line) for line in layout.metrics_jsonl.read_text().splitlines()]
        assert lines == [{"format_version": 1, **row.as_row()} for row in read_metrics(layout)]
        assert [line["iteration"] for line in lines] == [0, 1, 2]

    @pytest.mark.parametrize("damage", ["lost", "short", "long"])
    def test_the_lines_are_derived_anew_where_they_do_not_fit(self, layout, damage):
        for number in (1, 2, 3):
            publish_metrics(layout, make_row(number - 1))
        lines = layout.metrics_jsonl.read_text().splitlines(keepends=True)
        if damage == "lost":
            layout.metrics_jsonl.unlink()
        else:
            layout.metrics_jsonl.write_text("".join(lines[:1] if damage == "short" else lines * 2))
        publish_metrics(layout, make_row(2))
        found = [json.loads(line) for line in layout.metrics_jsonl.read_text().splitlines()]
        assert [line["iteration"] for line in found] == [0, 1, 2]
        assert found == [{"format_version": 1, **row.as_row()} for row in read_metrics(layout)]

    def test_those_of_an_update_that_is_done_again_are_not_replaced(self, layout):
        publish_metrics(layout, make_row(0, train_seconds=1.0))
        before = contents(layout.root)
        publish_metrics(layout, make_row(0, train_seconds=2.0))
        assert contents(layout.root) == before

    def test_those_that_differ_in_more_than_times_are_kept_in_quarantine(self, layout):
        publish_metrics(layout, make_row(0))
        before = layout.metrics(1).read_bytes()
        publish_metrics(layout, make_row(0, reward_mean=7.0))
        assert read_metrics(layout)[0].reward_mean == 7.0
        assert (layout.quarantine / "metrics" / "000001.json").read_bytes() == before

    def test_those_of_another_run_are_not_replaced(self, layout):
        publish_metrics(layout, make_row(0))
        edit_json(layout.metrics(1), run="another")
        before = contents(layout.root)
        with pytest.raises(ForeignFileError, match=r"metrics/000001\.json: belongs to another run .*rlcm quarantine"):
            publish_metrics(layout, make_row(0))
        assert contents(layout.root) == before

    @pytest.mark.parametrize("changes", [{"reward_mean": 0.75}, {"digest": None}, {"more": 1}])
    def test_an_edited_value_is_found(self, layout, changes):
        publish_metrics(layout, make_row(0))
        edit_json(layout.metrics(1), **changes)
        with pytest.raises(CorruptFileError, match="is not as it was published"):
            read_metrics(layout)

    def test_a_number_that_is_not_finite_is_null(self, layout):
        publish_metrics(layout, make_row(0, loss=math.nan, rewards={"odd": math.inf}))
        (row,) = read_metrics(layout)
        written = json.loads(layout.metrics(1).read_text())
        assert (written["loss"], written["rewards"]) == (None, {"odd": None})
        assert math.isnan(row.measured["loss"])
        assert math.isnan(row.rewards["odd"])
