"""Every damaged, foreign or future file: the right error, which names file, fault and remedy; nothing deleted."""

import json
import shutil

import pytest
import torch
from store_samples import (
    IDENTITY,
    REWARD,
    contents,
    edit_json,
    flip_bit,
    forge_record,
    make_manifest,
    write_rollout,
    write_run,
)

from rlcm_cli.core.digests import sha256
from rlcm_cli.errors import (
    CorruptFileError,
    ForeignFileError,
    FormatVersionError,
    MissingFileError,
    RewardError,
    RlcmError,
    StoreError,
)
from rlcm_cli.store.checkpoint import MARKER_FILE, TRAINER_FILE, check_checkpoint, read_trainer_state
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import publish_rewards, read_rewards, read_shard
from rlcm_cli.store.run import read_config

MANIFEST = make_manifest()


@pytest.fixture
def layout(tmp_path):
    return write_run(tmp_path / "run")


@pytest.fixture
def shard(layout):
    return layout.shard(0, 0, 2)


@pytest.fixture
def sidecar(layout):
    return layout.reward_shard(0, REWARD, 0, 2)


def read(layout):
    """Read all that training reads of a rollout."""
    manifest = read_manifest(layout.manifest(0))
    for number in range(2):
        read_shard(layout, manifest, number)
    read_rewards(layout, manifest, REWARD)


def refused(error, layout, act=read):
    """Give the one-line message of the error that a reader of the run meets; all files stay as they are."""
    before = contents(layout.root)
    with pytest.raises(RlcmError) as caught:
        act(layout)
    assert type(caught.value) is error
    assert contents(layout.root) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def quarantine_advice(path):
    return f"`rlcm quarantine {path}`"


def test_the_undamaged_run_is_read(layout):
    read(layout)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_shard(layout, shard, kept):
    shard.write_bytes(shard.read_bytes()[:kept])
    message = refused(CorruptFileError, layout)
    assert message.startswith(f"{shard}: has ")
    assert "truncated" in message
    assert quarantine_advice(shard) in message


def test_a_shard_with_bytes_appended(layout, shard):
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert refused(CorruptFileError, layout).startswith(f"{shard}: has ")


@pytest.mark.parametrize("place", [0.0, 0.02, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_anywhere_in_a_shard(layout, shard, place, bit):
    flip_bit(shard, int(place * (shard.stat().st_size - 1)), bit)
    message = refused(CorruptFileError, layout)
    assert message.startswith(f"{shard}: its SHA-256 is not the receipt's: a flipped bit")
    assert quarantine_advice(shard) in message


def test_a_flipped_bit_in_a_reward_sidecar(layout, sidecar):
    flip_bit(sidecar, sidecar.stat().st_size - 2)
    assert quarantine_advice(sidecar) in refused(CorruptFileError, layout)


def test_a_flipped_bit_in_any_byte_of_a_receipt(layout, shard):
    receipt = receipt_path(shard)
    original = receipt.read_bytes()
    for position in range(len(original)):
        flip_bit(receipt, position, position % 8)
        with pytest.raises(StoreError) as caught:
            read_shard(layout, MANIFEST, 0)
        assert shard.stem in str(caught.value), position
        receipt.write_bytes(original)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', "nonsense"])
def test_a_receipt_that_is_none(layout, shard, text):
    receipt_path(shard).write_text(text)
    message = refused(CorruptFileError, layout)
    assert str(receipt_path(shard)) in message
    assert "rlcm quarantine" in message


def test_a_receipt_whose_record_is_gone(layout, shard):
    shard.unlink()
    message = refused(MissingFileError, layout)
    assert message.startswith(f"{shard}: has a receipt but is gone")
    assert quarantine_advice(shard) in message


def test_a_shard_of_another_plan(layout, shard, tmp_path):
    other = write_run(tmp_path / "other")
    shutil.rmtree(other.rollout(0))
    write_rollout(other, make_manifest(run_seed=6))
    for file in (shard, receipt_path(shard)):
        shutil.copy(other.rollout(0) / file.name, file)
    message = refused(ForeignFileError, layout, lambda run: read_shard(run, MANIFEST, 0))
    assert message.startswith(f"{shard}: belongs to another plan")
    assert quarantine_advice(shard) in message


def test_a_shard_from_another_place_of_the_plan(layout, shard):
    neighbour = layout.shard(0, 1, 2)
    shutil.copy(neighbour, shard)
    shutil.copy(receipt_path(neighbour), receipt_path(shard))
    message = refused(ForeignFileError, layout)
    assert message.startswith(f"{shard}: does not hold the samples 0 to 3")
    assert quarantine_advice(shard) in message


def test_the_rewards_of_another_shard(layout, sidecar):
    neighbour = layout.reward_shard(0, REWARD, 1, 2)
    shutil.copy(neighbour, sidecar)
    shutil.copy(receipt_path(neighbour), receipt_path(sidecar))
    message = refused(ForeignFileError, layout)
    assert message.startswith(f"{sidecar}: scores another shard")
    assert quarantine_advice(sidecar) in message


def test_rewards_of_other_samples_than_the_shards(layout, sidecar):
    sidecar.unlink()
    receipt_path(sidecar).unlink()
    publish_rewards(layout, MANIFEST, 0, REWARD, IDENTITY, torch.tensor([0, 1, 2, 2]), torch.ones(4))
    assert refused(ForeignFileError, layout).startswith(f"{sidecar}: does not score the 4 samples of its shard")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite(layout, sidecar, value):
    sidecar.unlink()
    receipt_path(sidecar).unlink()
    publish_rewards(layout, MANIFEST, 0, REWARD, IDENTITY, torch.arange(4), torch.tensor([0, 1, 2, value]))
    message = refused(RewardError, layout)
    assert message.startswith(f"{sidecar}: holds a NaN or infinite reward")
    assert quarantine_advice(sidecar) in message


@pytest.mark.parametrize("header", [None, "no JSON", "[]"])
def test_a_safetensors_file_of_another_program(layout, shard, header):
    forge_record(shard, header)
    message = refused(ForeignFileError, layout)
    assert str(shard) in message
    assert quarantine_advice(shard) in message


def test_a_file_that_is_no_safetensors_file_at_all(layout, shard):
    data = b"\x10\0\0\0\0\0\0\0 not JSON either"
    shard.write_bytes(data)
    edit_json(receipt_path(shard), bytes=len(data), sha256=sha256(data))
    assert "not a record of this toolkit" in refused(ForeignFileError, layout)


def test_a_record_of_another_kind_in_a_shards_place(layout, shard):
    forge_record(shard, {"format_version": 1, "kind": "rewards", "plan": MANIFEST.digest})
    assert "kind 'rewards', not 'rollout'" in refused(ForeignFileError, layout)


@pytest.mark.parametrize("version", [None, "1", 0, True])
def test_a_record_without_a_format_version(layout, shard, version):
    forge_record(shard, {"format_version": version, "kind": "rollout", "plan": MANIFEST.digest})
    assert "states no format version" in refused(ForeignFileError, layout)


class TestFutureVersion:
    def check(self, layout, path, act=read):
        message = refused(FormatVersionError, layout, act)
        assert message.startswith(f"{path}: has format version 2")
        assert "install a newer rlcm" in message

    def test_of_a_shard(self, layout, shard):
        forge_record(shard, {"format_version": 2, "kind": "rollout", "plan": MANIFEST.digest, "new": 1})
        self.check(layout, shard)

    def test_of_a_receipt(self, layout, shard):
        edit_json(receipt_path(shard), format_version=2, more="fields")
        self.check(layout, receipt_path(shard))

    def test_of_a_manifest(self, layout):
        edit_json(layout.manifest(0), format_version=2, more="fields")
        self.check(layout, layout.manifest(0))

    def test_of_a_configuration(self, layout):
        edit_json(layout.config, format_version=2)
        self.check(layout, layout.config, read_config)

    def test_of_a_checkpoint(self, layout):
        marker = layout.checkpoint(1) / MARKER_FILE
        edit_json(marker, format_version=2)
        self.check(layout, marker, lambda run: read_trainer_state(run, 1))

    def test_of_an_evaluation(self, layout):
        receipt = receipt_path(layout.evaluation(0))
        edit_json(receipt, format_version=2)
        self.check(layout, receipt, lambda run: read_evaluation(run, 0))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format_version": 1}', '{"format_version": 1, "iteration": "0"}'])
def test_a_manifest_that_is_none(layout, text):
    layout.manifest(0).write_text(text)
    message = refused(CorruptFileError, layout)
    assert message.startswith(f"{layout.manifest(0)}: ")
    assert "rlcm quarantine" in message


def test_a_manifest_with_another_value_binds_no_shard(layout):
    edit_json(layout.manifest(0), run_seed=6)
    assert "belongs to another plan" in refused(ForeignFileError, layout)


def test_a_configuration_that_is_none(layout):
    layout.config.write_text(json.dumps({"format_version": 1}))
    assert "not the configuration of a run" in refused(ForeignFileError, layout, read_config)
    layout.config.unlink()
    assert "is not a run directory" in refused(MissingFileError, layout, read_config)


class TestCheckpoint:
    def state(self, layout):
        return check_checkpoint(layout, 1)

    @pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "optimizer.safetensors", TRAINER_FILE])
    @pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
    def test_a_flipped_bit(self, layout, name, place):
        file = layout.checkpoint(1) / name
        flip_bit(file, int(place * (file.stat().st_size - 1)))
        message = refused(CorruptFileError, layout, self.state)
        assert message.startswith(f"{file}: is not the file that was published")
        assert quarantine_advice(layout.checkpoint(1)) in message

    @pytest.mark.parametrize("cut", ["truncate", "delete"])
    @pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "prompt_statistics.json"])
    def test_a_file_cut_or_deleted(self, layout, name, cut):
        file = layout.checkpoint(1) / name
        if cut == "truncate":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
        assert refused(CorruptFileError, layout, self.state).startswith(f"{file}: is not the file that was published")

    @pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"files": []}'])
    def test_a_marker_that_is_gone_or_none(self, layout, text):
        marker = layout.checkpoint(1) / MARKER_FILE
        marker.unlink()
        if text is not None:
            marker.write_text(text)
        assert quarantine_advice(layout.checkpoint(1)) in refused(CorruptFileError, layout, self.state)

    def test_a_checkpoint_that_is_not_there(self, layout):
        message = refused(MissingFileError, layout, lambda run: read_trainer_state(run, 7))
        assert "000007: no such checkpoint; `rlcm inspect" in message
