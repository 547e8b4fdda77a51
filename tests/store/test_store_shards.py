import json
import os

import pytest
import safetensors
import torch
from store_samples import (
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
from rlcm_cli.store.manifest import publish_manifest, read_manifest, split_groups
from rlcm_cli.store.rollouts import missing_rewards, missing_shards, publish_shard, read_rewards, read_shard
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
    assert torch.equal(read_rewards(layout, manifest, REWARD), torch.arange(SAMPLES) / 10)
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


def test_missing_rewards_are_those_of_any_named_reward(layout):
    manifest = make_manifest()
    assert missing_rewards(layout, manifest, [REWARD]) == []
    assert missing_rewards(layout, manifest, [REWARD, "other-0"]) == [0, 1]
    receipt_path(layout.reward_shard(0, REWARD, 1, 2)).unlink()
    assert missing_rewards(layout, manifest, [REWARD]) == [1]
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


def test_read_record_refuses_another_kind(layout):
    with pytest.raises(ForeignFileError, match="holds a record of kind 'rollout', not 'rewards'"):
        read_record(layout.shard(0, 0, 2), "rewards")
