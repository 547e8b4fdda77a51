"""A run that the phases wrote is read with `json` and `safetensors` alone, rule by rule of store/shards.py."""

import json

import pytest
from phase_runs import copy_run, make_config, prepare
from read_plainly import read_plainly

from rlcm_cli.store.layout import receipt_path


def test_a_run_is_read_without_this_toolkit(finished_run):
    result = read_plainly(finished_run)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"rollout": 4, "rewards": 4, "evaluation": 2}


@pytest.mark.parametrize("damage", ["a flipped bit", "another plan", "no receipt"])
def test_the_plain_reader_itself_can_fail(finished_run, tmp_path, damage):
    run = copy_run(finished_run, tmp_path / "run")
    shard = run.layout.shard(0, 1, 2)
    if damage == "a flipped bit":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    elif damage == "no receipt":
        receipt_path(shard).unlink()
    else:
        run.layout.manifest(0).write_bytes(run.layout.manifest(1).read_bytes())
    assert read_plainly(run.layout.root).returncode != 0


def test_groups_are_drawn_together_and_never_cut(tiny_lcm, tmp_path):
    config = make_config(
        tiny_lcm, sample={"samples": 12, "group_size": 2, "shards": 4, "batch_size": 3}, runtime={"iterations": 1}
    )
    run, _ = prepare(tmp_path / "run", config)
    for name in ("evaluations", "checkpoints"):
        (run.layout.root / name).mkdir(exist_ok=True)
    result = read_plainly(run.layout.root)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"rollout": 4, "rewards": 4, "evaluation": 0}
