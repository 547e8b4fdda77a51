"""Shards and rewards written in the background: the same bytes, and no error lost."""

import contextlib

import pytest
from phase_runs import did_nothing, fingerprint, finish, make_config, prepare, shared_model

from rlcm_cli.errors import StorageFullError
from rlcm_cli.phases import sample as sample_module
from rlcm_cli.phases import score as score_module
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import missing_shards


class Foreground:
    def submit(self, publish):
        publish()

    def wait(self):
        pass


@pytest.fixture
def config(tiny_lcm):
    return make_config(tiny_lcm, sample={"shards": 4})


def test_the_bytes_are_those_of_writing_in_turn(config, tmp_path, monkeypatch):
    behind, _ = prepare(tmp_path / "behind", config)
    for module in (sample_module, score_module):
        monkeypatch.setattr(module, "writing_behind", lambda: contextlib.nullcontext(Foreground()))
    in_turn, _ = prepare(tmp_path / "in-turn", config)
    expected = fingerprint(in_turn.layout.root)
    assert sum("shard-" in name for name in expected) == 4 * 4  # shards and rewards with their receipts
    assert fingerprint(behind.layout.root) == expected


def failing_at(monkeypatch, module, name, number):
    """Let a disk be full from a shard on; give the numbers of those that were tried."""
    tried, publish = [], getattr(module, name)

    def fill(layout, manifest, shard, *rest):
        tried.append(shard)
        if shard >= number:
            raise StorageFullError("the disk is full")
        publish(layout, manifest, shard, *rest)

    monkeypatch.setattr(module, name, fill)
    return tried


@pytest.mark.parametrize("number", [1, 3])
def test_sampling_ends_with_the_writers_error_and_goes_on_from_there(config, tiny_lcm, tmp_path, monkeypatch, number):
    run, model = create_run(tmp_path / "run", config), shared_model(tiny_lcm)
    with monkeypatch.context() as patch:
        tried = failing_at(patch, sample_module, "publish_shard", number)
        with pytest.raises(StorageFullError, match="the disk is full"):
            finish(sample(run, model))
    assert tried == [*range(number + 1)]
    assert missing_shards(run.layout, read_manifest(run.layout.manifest(0))) == [*range(number, 4)]
    finish(sample(run, model))
    assert did_nothing(finish(sample(run, model)))


def test_scoring_ends_with_the_writers_error_and_goes_on_from_there(config, tmp_path, monkeypatch):
    run, _ = prepare(tmp_path / "run", config, upto="sample")
    scorers = load_scorers(run)
    with monkeypatch.context() as patch:
        tried = failing_at(patch, score_module, "publish_rewards", 3)
        with pytest.raises(StorageFullError, match="the disk is full"):
            finish(score(run, scorers))
    assert tried == [0, 1, 2, 3]
    finish(score(run, scorers))
    assert did_nothing(finish(score(run, scorers)))
