"""The phases by hand, by one or several workers, give what the loop gives; a phase twice does nothing."""

import json

import pytest
import safetensors.torch
import torch
from phase_runs import (
    copy_run,
    did_nothing,
    fingerprint,
    finish,
    make_by_hand,
    make_config,
    make_loop,
    prepare,
    raw_bytes,
    shared_model,
)

from rlcm_cli.errors import MissingFileError
from rlcm_cli.events import Evaluated, PhaseSkipped, Warned
from rlcm_cli.phases.evaluate import evaluate
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.worker import Worker
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.layout import FORMAT_VERSION

ZERO, ONE = Worker(0, 2), Worker(1, 2)


def test_the_phases_by_hand_give_what_the_loop_gives(tiny_lcm, finished_run, tmp_path):
    run = make_by_hand(tmp_path / "run", make_config(tiny_lcm))
    assert fingerprint(run.layout.root) == fingerprint(finished_run)


@pytest.mark.parametrize("workers", [(ZERO, ONE), (ONE, ZERO), (ONE, ZERO, ONE)])
def test_two_workers_in_either_order_give_what_the_loop_gives(tiny_lcm, finished_run, tmp_path, workers):
    run = make_by_hand(tmp_path / "run", make_config(tiny_lcm), workers, fresh=False)
    assert fingerprint(run.layout.root) == fingerprint(finished_run)


def test_a_worker_draws_and_scores_its_own_shards_alone(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm, sample={"shards": 3})
    run, model = create_run(tmp_path / "run", config), shared_model(tiny_lcm)
    receipts = run.layout.rollout(0).glob
    finish(sample(run, model, ONE))
    assert [file.name for file in receipts("shard-*.json")] == ["shard-00001-of-00003.json"]
    events = finish(score(run, load_scorers(run), ZERO))
    assert [type(event) for event in events] == [Warned, PhaseSkipped]
    assert "2 of 3 shards are not sampled yet" in events[0].message
    assert list(receipts("rewards/*/*")) == []
    finish(sample(run, model, ZERO))
    finish(score(run, load_scorers(run), ZERO))
    assert sorted(file.name[:11] for file in receipts("rewards/*/*.json")) == ["shard-00000", "shard-00002"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_lcm, finished_run, tmp_path):
    again = make_loop(tmp_path / "again", make_config(tiny_lcm))
    assert fingerprint(again.layout.root) == fingerprint(finished_run)
    other, one = (
        fingerprint(make_loop(tmp_path / "other", make_config(tiny_lcm, seed=1)).layout.root),
        fingerprint(again.layout.root),
    )
    assert other.keys() == one.keys()
    equal = {name for name in one if one[name] == other[name]}
    assert {name.rpartition("/")[2] for name in equal} <= {
        "optimizer.safetensors",  # empty at checkpoint 0
        "prompt_statistics.json",
    }


def images_and_noise(root):
    tensors = [safetensors.torch.load_file(file) for file in sorted(root.glob("rollouts/000000/*.safetensors"))]
    return {
        "noise": torch.cat([part["latents"][:, 0] for part in tensors]),
        "seed": torch.cat([part["seed"] for part in tensors]),
        "latents": torch.cat([part["latents"] for part in tensors]),
    }


@pytest.mark.parametrize("split", [{"batch_size": 3}, {"shards": 5}, {"shards": 1, "batch_size": 8}])
def test_the_noise_of_a_sample_depends_on_neither_batch_nor_shard(tiny_lcm, finished_run, tmp_path, split):
    run, _ = prepare(tmp_path / "run", make_config(tiny_lcm, sample=split), upto="sample")
    found, expected = images_and_noise(run.layout.root), images_and_noise(finished_run)
    assert torch.equal(found["seed"], expected["seed"])
    assert torch.equal(found["noise"], expected["noise"])
    torch.testing.assert_close(found["latents"], expected["latents"], rtol=1e-3, atol=1e-3)


def test_no_two_samples_share_their_noise(finished_run):
    seeds = [
        seed
        for file in finished_run.rglob("*.safetensors")
        for seed in safetensors.torch.load_file(file).get("seed", torch.tensor([])).tolist()
        if "000002" not in file.parts  # the same seeds as evaluation 0, on purpose
    ]
    assert len(seeds) == 2 * 8 + 3
    assert len(set(seeds)) == len(seeds)


def test_every_phase_again_does_nothing_and_changes_no_byte(tiny_lcm, tmp_path):
    run, model = prepare(tmp_path / "run", make_config(tiny_lcm))
    rewards = load_scorers(run)

    def unchanged(phase):
        before = raw_bytes(run.layout.root)
        events = finish(phase)
        assert raw_bytes(run.layout.root) == before
        return events

    assert did_nothing(unchanged(sample(run, model)))
    assert did_nothing(unchanged(score(run, rewards)))
    finish(train(run, model))
    (skipped,) = unchanged(train(run, model))
    assert (skipped.phase, skipped.iteration) == ("train", 1)
    finish(evaluate(run, model, rewards, 1))
    assert [type(event) for event in unchanged(evaluate(run, model, rewards, 1))] == [Evaluated]


def test_a_finished_loop_again_changes_no_byte(tiny_lcm, finished_run, tmp_path):
    run = copy_run(finished_run, tmp_path / "run")
    before = raw_bytes(run.layout.root)
    events = finish(loop(run, shared_model(tiny_lcm), load_scorers(run)))
    assert raw_bytes(run.layout.root) == before
    assert [event.checkpoint for event in events] == [0, 2]


def test_a_run_extended_by_iterations_equals_a_run_of_that_length(tiny_lcm, finished_run, tmp_path):
    root = tmp_path / "run"
    make_loop(root, make_config(tiny_lcm, runtime={"iterations": 1}))
    make_loop(root, make_config(tiny_lcm, runtime={"iterations": 2}))
    found, expected = fingerprint(root), fingerprint(finished_run)
    assert found.pop("config.json") != expected.pop("config.json")  # which states the first length
    extra = {name for name in found if name.startswith("evaluations/000001/")}
    assert {name: digest for name, digest in found.items() if name not in extra} == expected


def test_pruning_during_the_loop_changes_no_result(tiny_lcm, finished_run, tmp_path):
    root = tmp_path / "run"
    make_loop(root, make_config(tiny_lcm, runtime={"keep_rollouts": 1, "keep_checkpoints": 1}))
    found, expected = fingerprint(root), fingerprint(finished_run)
    lost = expected.keys() - found.keys()
    assert lost == {
        *(f"rollouts/000000/shard-{k:05d}-of-00002.safetensors" for k in (0, 1)),
        *(name for name in expected if name.startswith("checkpoints/000001/")),
    }
    assert found.keys() - expected.keys() == {"pruned.json"}
    assert json.loads((root / "pruned.json").read_text()) == {
        "format_version": FORMAT_VERSION,
        "rollouts": [0],
        "checkpoints": [1],
    }
    results = found.keys() - {"config.json", "pruned.json"}
    assert {name: expected[name] for name in results} == {name: found[name] for name in results}
    again = raw_bytes(root)
    make_loop(root, make_config(tiny_lcm))  # a pruned run is a finished one
    assert raw_bytes(root) == again


def test_a_phase_without_its_input_names_the_phase_that_makes_it(tiny_lcm, tmp_path):
    run = create_run(tmp_path / "run", make_config(tiny_lcm))
    with pytest.raises(MissingFileError, match=r"no rollouts to score; draw some with `rlcm sample --run"):
        finish(score(run, load_scorers(run)))
    with pytest.raises(MissingFileError, match=r"holds no run yet; start one with `rlcm sample"):
        finish(train(run, shared_model(tiny_lcm)))


def test_metrics_tell_what_an_iteration_was(finished_run):
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    for row in rows:
        assert row["samples"] == 8
        assert row["reward_mean"] == pytest.approx(row["rewards"]["compressibility"])
        assert row["reward_best"] >= row["reward_mean"]
        assert row["ratio_drift"] <= 2e-6
        assert row["grad_norm"] > 0
