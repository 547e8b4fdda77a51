import json
import os

import numpy as np
import pytest
import safetensors
import torch
from store_samples import (
    IDENTITY,
    REWARD,
    SAMPLES,
    contents,
    make_manifest,
    make_shard,
    write_run,
)

from rlcm_cli.core.digests import sha256
from rlcm_cli.errors import ForeignFileError, MissingFileError
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import RunLayout, receipt_path
from rlcm_cli.store.manifest import publish_manifest, read_manifest, split_groups, split_shares
from rlcm_cli.store.rollouts import (
    is_pruned,
    missing_rewards,
    missing_shards,
    publish_rewards,
    publish_shard,
    read_rewards,
    read_shard,
)
from rlcm_cli.store.run import prune_rollouts
from rlcm_cli.store.shards import is_published, publish_record, read_record


@pytest.fixture
def layout(tmp_path):
    return write_run(tmp_path / "run")


def test_what_is_published_is_read_back(layout):
    manifest = read_manifest(layout.manifest(0))
    assert manifest == make_manifest()
    for number in range(2):
        read, written = read_shard(layout, manifest, number), make_shard(manifest, number)
        for got, put in (
            (read.trajectories.latents_BSCHW, written.trajectories.latents_BSCHW),
            (read.trajectories.log_probs_BA, written.trajectories.log_probs_BA),
            (read.trajectories.timesteps_A2, written.trajectories.timesteps_A2),
            (read.images, written.images),
            (read.sample_index, written.sample_index),
            (read.seed, written.seed),
            (read.conditioning["prompt_embeds"], written.conditioning["prompt_embeds"]),
        ):
            assert got.dtype == put.dtype
            assert torch.equal(got, put)
        assert read.sample_prompts() == [manifest.prompt_of(sample) for sample in range(*manifest.shards[number])]
    assert read_rewards(layout, manifest, REWARD).tolist() == (torch.arange(SAMPLES) / 10).tolist()
    evaluation = read_evaluation(layout, 0)
    assert evaluation.prompts == ["cat", "dog"]
    assert evaluation.held_out.tolist() == [False, True]
    assert evaluation.rewards["odd"].tolist() == [1.0, 2.0]


def test_the_same_record_has_the_same_bytes_in_any_order_of_its_tensors_and_fields(tmp_path):
    tensors = {f"t{number}": torch.arange(number + 1.0) for number in range(20)} | {"sample_index": torch.arange(3)}
    fields = {"plan": "x", "prompts": ["ä", "b"], "tasks": ["t"]}
    for folder, backwards in (("a", False), ("b", True)):
        publish_record(
            tmp_path / folder / "r.safetensors",
            "rollout",
            dict(sorted(tensors.items(), reverse=backwards)),
            dict(sorted(fields.items(), reverse=backwards)),
        )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_record_has_one_metadata_key_and_its_receipt_the_digest_of_its_bytes(layout):
    path = layout.shard(0, 1, 2)
    with safetensors.safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == ["rlcm"]
    receipt = json.loads(receipt_path(path).read_text())
    assert receipt == {
        "format_version": 1,
        "kind": "rollout",
        "sha256": sha256(path.read_bytes()),
        "bytes": path.stat().st_size,
        "rows": 4,
    }


def test_a_record_without_its_receipt_is_not_there_and_is_written_anew(layout):
    manifest, path = make_manifest(), layout.shard(0, 0, 2)
    data = path.read_bytes()
    receipt_path(path).unlink()
    path.write_bytes(b"half")
    assert not is_published(path)
    assert missing_shards(layout, manifest) == [0]
    publish_shard(layout, manifest, 0, make_shard(manifest, 0))
    assert path.read_bytes() == data
    assert missing_shards(layout, manifest) == []


def test_the_record_is_there_before_its_receipt(layout, monkeypatch):
    path = layout.shard(0, 0, 2)
    expected = path.read_bytes()
    path.unlink()
    receipt_path(path).unlink()
    link, seen = os.link, []

    def look(source, target):
        seen.append((target.name, path.read_bytes() == expected))
        link(source, target)

    monkeypatch.setattr(os, "link", look)
    publish_shard(layout, make_manifest(), 0, make_shard(make_manifest(), 0))
    assert seen == [(receipt_path(path).name, True)]


def test_a_published_record_is_not_touched_again(layout):
    path = layout.shard(0, 0, 2)
    before = path.stat()
    publish_shard(layout, make_manifest(), 0, make_shard(make_manifest(), 1))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_temporary_names_are_no_part_of_a_run(layout):
    before = (layout.iterations(), layout.checkpoints(), layout.evaluations())
    for folder, name in (
        ("checkpoints", ".000002.77-abcdef.tmp"),
        ("rollouts", ".000001.77-abcdef.tmp"),
        ("evaluations", ".000001.77-abcdef.tmp"),
    ):
        (layout.root / folder / name).mkdir()
    assert (layout.iterations(), layout.checkpoints(), layout.evaluations()) == before


def test_a_rollout_without_a_plan_and_an_evaluation_without_a_receipt_are_not_there(tmp_path):
    layout = RunLayout(tmp_path)
    layout.rollout(0).mkdir(parents=True)
    layout.evaluation(0).parent.mkdir(parents=True)
    layout.evaluation(0).write_bytes(b"the writer died before the receipt")
    assert layout.iterations() == []
    assert layout.evaluations() == []


def test_missing_rewards_are_the_shards_without_a_receipt_of_that_reward(layout):
    manifest = make_manifest()
    assert missing_rewards(layout, manifest, REWARD) == []
    assert missing_rewards(layout, manifest, "other-0") == [0, 1]
    receipt_path(layout.reward_shard(0, REWARD, 1, 2)).unlink()
    assert missing_rewards(layout, manifest, REWARD) == [1]
    with pytest.raises(MissingFileError, match=r"score the rollout first with `rlcm score --run "):
        read_rewards(layout, manifest, REWARD)


@pytest.mark.parametrize(
    ("samples", "group_size", "shards"), [(8, 1, 3), (8, 2, 4), (12, 4, 2), (12, 4, 3), (7, 7, 1), (100, 5, 7)]
)
def test_shards_cover_all_samples_once_and_never_cut_a_group(samples, group_size, shards):
    parts = split_groups(samples, group_size, shards)
    assert [sample for start, stop in parts for sample in range(start, stop)] == list(range(samples))
    assert len(parts) == shards
    sizes = [(stop - start) // group_size for start, stop in parts]
    assert all(start % group_size == 0 for start, _ in parts)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_a_plan_is_published_once_and_another_in_its_place_is_refused(layout):
    path = layout.manifest(0)
    before = path.read_bytes()
    assert sha256(before) == make_manifest().digest
    publish_manifest(path, make_manifest())
    with pytest.raises(ForeignFileError, match=r"another plan .*`rlcm quarantine .*000000`"):
        publish_manifest(path, make_manifest(run_seed=6))
    assert path.read_bytes() == before


def test_a_worker_on_another_processor_takes_the_published_plan(layout):
    """ᾱ is a float32 product, whose last bits are the processor's."""
    path, first = layout.manifest(0), make_manifest()
    rounded = first.schedule.model_copy(update={"latents_coef": (1.5000001, 1.25, 1.0)})
    second = make_manifest(schedule=rounded)
    assert second.digest != first.digest
    assert publish_manifest(path, second) == first

    for change in ({"std": (0.9, 0.61, 0.0)}, {"timesteps": (999, 679, 340)}):
        other = make_manifest(schedule=first.schedule.model_copy(update=change))
        with pytest.raises(ForeignFileError, match="another plan"):
            publish_manifest(path, other)


def test_a_plan_without_its_version_is_refused(layout):
    path = layout.manifest(0)
    values = json.loads(path.read_text())
    del values["format_version"]
    path.write_text(json.dumps(values))
    with pytest.raises(ForeignFileError, match="states no format version"):
        read_manifest(path)


def test_read_record_refuses_another_kind(layout):
    with pytest.raises(ForeignFileError, match="holds a record of kind 'rollout', not 'rewards'"):
        read_record(layout.shard(0, 0, 2), "rewards")


class TestTasks:
    """Four groups of two samples; the third group is of the second task."""

    @pytest.fixture
    def manifest(self, layout):
        manifest = make_manifest(7, tasks=("a", "b"), group_tasks=(0, 0, 1, 0))
        publish_manifest(layout.manifest(7), manifest)
        for number in range(2):
            publish_shard(layout, manifest, number, make_shard(manifest, number))
        return read_manifest(layout.manifest(7))

    def give(self, layout, manifest, number, samples, revision="one"):
        index = torch.tensor(samples, dtype=torch.int64)
        publish_rewards(layout, manifest, number, REWARD, {**IDENTITY, "revision": revision}, index, index / 8)

    def test_survive_the_file_and_change_the_plan(self, manifest):
        assert (manifest.tasks, manifest.group_tasks) == (("a", "b"), (0, 0, 1, 0))
        assert manifest.digest != make_manifest(7, tasks=("a", "b"), group_tasks=(0, 1, 0, 0)).digest
        assert manifest.digest != make_manifest(7, tasks=("a", "c"), group_tasks=(0, 0, 1, 0)).digest

    def test_have_whole_groups_of_samples(self, manifest):
        assert [manifest.task_of(sample) for sample in range(8)] == [0, 0, 0, 0, 1, 1, 0, 0]
        assert manifest.samples_of(["a"]) == [0, 1, 2, 3, 6, 7]
        assert manifest.samples_of(["b"]) == [4, 5]
        assert manifest.samples_of(["b", "a"]) == list(range(8))
        assert [manifest.samples_of(["b"], shard) for shard in (0, 1)] == [[], [4, 5]]
        assert manifest.samples_of(["a", "b"], 1) == [4, 5, 6, 7]

    def test_are_named_in_the_shards(self, layout, manifest):
        for number, expected in ((0, [0, 0, 0, 0]), (1, [1, 1, 0, 0])):
            tensors, fields = read_record(layout.shard(7, number, 2), "rollout")
            assert fields["tasks"] == ["a", "b"]
            assert tensors["task_index"].tolist() == expected

    def test_have_rewards_of_their_own_and_nan_elsewhere(self, layout, manifest):
        self.give(layout, manifest, 0, [])
        self.give(layout, manifest, 1, [4, 5])
        values = read_rewards(layout, manifest, REWARD, ["b"])
        assert values[[4, 5]].tolist() == [0.5, 0.625]
        assert np.isnan(values[manifest.samples_of(["a"])]).all()
        assert values.dtype == np.float32

    @pytest.mark.parametrize("tasks", [None, ["a"], ["a", "b"]])
    def test_are_not_mistaken_for_one_another(self, layout, manifest, tasks):
        self.give(layout, manifest, 0, [])
        self.give(layout, manifest, 1, [4, 5])
        with pytest.raises(ForeignFileError, match=r"does not score the 4 samples of its shard that it should"):
            read_rewards(layout, manifest, REWARD, tasks)

    def test_rewards_of_different_revisions_are_refused_with_both_shards(self, layout, manifest):
        self.give(layout, manifest, 0, [0, 1, 2, 3], "one")
        self.give(layout, manifest, 1, [4, 5, 6, 7], "two")
        with pytest.raises(ForeignFileError) as caught:
            read_rewards(layout, manifest, REWARD)
        message = str(caught.value)
        folder = layout.reward_shard(7, REWARD, 0, 2).parent
        assert message.startswith(f"{folder}: shard-00000-of-00002.safetensors and shard-00001-of-00002.safetensors ")
        assert f"`rlcm quarantine {folder}`" in message
        assert "\n" not in message


def test_the_samples_of_one_task_are_those_of_the_rollout(layout):
    manifest = read_manifest(layout.manifest(0))
    assert manifest.samples_of(manifest.tasks) == list(range(SAMPLES))
    every, of_task = (read_rewards(layout, manifest, REWARD, tasks) for tasks in (None, ["compression"]))
    assert np.array_equal(every, of_task)


@pytest.mark.parametrize(
    ("groups", "shares", "counts"),
    [
        (8, [1.0], (8,)),
        (8, [1.0, 1.0], (4, 4)),
        (8, [3.0, 1.0], (6, 2)),
        (2, [1000.0, 1.0], (1, 1)),
        (10, [1000.0, 1.0], (9, 1)),
        (3, [1.0, 1.0, 1.0], (1, 1, 1)),
        (64, [2.0, 1.0, 1.0], (32, 16, 16)),
    ],
)
def test_groups_are_dealt_by_shares(groups, shares, counts):
    assert split_shares(groups, shares) == counts
    assert split_shares(groups, [8 * share for share in shares]) == counts


def test_groups_are_dealt_in_any_number_to_any_shares():
    for groups in range(1, 40):
        for tasks in range(1, min(groups, 5) + 1):
            for shares in ([1.0] * tasks, [0.1 * 3**index for index in range(tasks)]):
                dealt = split_shares(groups, shares)
                assert sum(dealt) == groups
                assert len(dealt) == tasks
                assert min(dealt) >= 1
                exact = [groups * share / sum(shares) for share in shares]
                if min(exact) >= 1:
                    assert max(abs(found - wanted) for found, wanted in zip(dealt, exact, strict=True)) <= 1


def test_a_rollout_is_pruned_where_a_receipt_has_lost_its_shard(layout):
    manifest = read_manifest(layout.manifest(0))
    assert not is_pruned(layout, manifest)
    receipt_path(layout.shard(0, 1, 2)).unlink()
    assert not is_pruned(layout, manifest)  # its writer died, or never came
    layout.shard(0, 1, 2).unlink()
    assert not is_pruned(layout, manifest)
    prune_rollouts(layout, 0, 1)
    assert is_pruned(layout, manifest)


def test_an_evaluation_keeps_the_task_of_each_image(layout):
    assert read_evaluation(layout, 0).tasks == ["compression", "other"]
