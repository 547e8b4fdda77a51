"""`sample.staleness` 1: each iteration is drawn by the checkpoint before the one that is trained on it."""

import shutil

import numpy as np
import pytest
import torch
from metric_rows import make_row
from phase_runs import did_nothing, fingerprint, finish, kinds, make_by_hand, make_config, make_loop, shared_model

from rlcm_cli.config import override_config, parse_config
from rlcm_cli.errors import MissingFileError, StalePolicyError
from rlcm_cli.events import IterationTrained
from rlcm_cli.learning.log_probs import refresh_log_probs
from rlcm_cli.models.lora import lora_parameters, save_lora
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import gather_data, refresh_stale, train
from rlcm_cli.runs.hacking import best_checkpoints
from rlcm_cli.runs.held_out import best_held_out, read_held_out
from rlcm_cli.runs.policy import load_checkpoint, load_policy_model
from rlcm_cli.runs.run import create_run, open_run
from rlcm_cli.store.checkpoint import publish_checkpoint, read_trainer_state
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.quarantine import quarantine


def stale_config(folder, **sections):
    runtime = {"iterations": 3, **sections.pop("runtime", {})}
    return make_config(folder, sample={"staleness": 1, **sections.pop("sample", {})}, runtime=runtime, **sections)


@pytest.fixture(scope="module")
def config(tiny_lcm):
    return stale_config(tiny_lcm)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run of three iterations; copy it, do not change it."""
    return make_loop(tmp_path_factory.mktemp("stale") / "run", config)


def go_on(root, config, model):
    run = create_run(root, config)
    finish(loop(run, model, load_scorers(run)))


def copy_upto(finished, target, *, checkpoint, rollout):
    """Copy a run as it was with so many checkpoints and rollouts; give it."""
    root = shutil.copytree(finished.layout.root, target)
    for folder, newest in (("checkpoints", checkpoint), ("rollouts", rollout), ("timings", rollout)):
        for path in (root / folder).iterdir():
            if int(path.name) > newest:
                shutil.rmtree(path)
    shutil.rmtree(root / "evaluations" / "000003")
    (root / "metrics.jsonl").unlink()
    for path in (root / "metrics").iterdir():
        if int(path.stem) > checkpoint:
            path.unlink()
    return open_run(root)


def test_the_plans_record_the_checkpoint_that_drew(finished):
    layout = finished.layout
    policies = [read_manifest(layout.manifest(iteration)).policy for iteration in range(3)]
    assert [policy.checkpoint for policy in policies] == [0, 0, 1]
    assert [policy.digest for policy in policies] == [
        read_trainer_state(layout, number).policy_digest for number in (0, 0, 1)
    ]
    prompts = {read_manifest(layout.manifest(iteration)).prompts for iteration in range(3)}
    assert len(prompts) == 3, "two iterations of one policy drew the same"


def test_importance_ratios_are_those_of_the_policy_that_drew(finished):
    first, *later = [row.measured["ratio_drift"] for row in read_metrics(finished.layout)]
    assert first <= 2e-6
    assert min(later) > 1e-5


def test_phases_by_hand_give_what_the_loop_gives(config, finished, tmp_path):
    run = make_by_hand(tmp_path / "run", config)
    expected = fingerprint(finished.layout.root)
    assert fingerprint(run.layout.root) == {name: expected[name] for name in fingerprint(run.layout.root)}
    assert {*expected} - {*fingerprint(run.layout.root)} <= {"before_after.png", "rewards.png"}


@pytest.mark.parametrize(("checkpoint", "rollout"), [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)])
def test_a_run_that_stopped_between_phases_ends_the_same(config, finished, tiny_lcm, tmp_path, checkpoint, rollout):
    run = copy_upto(finished, tmp_path / "run", checkpoint=checkpoint, rollout=rollout)
    assert run.layout.checkpoints()[-1] == checkpoint
    go_on(run.layout.root, config, shared_model(tiny_lcm))
    assert fingerprint(run.layout.root) == fingerprint(finished.layout.root)


def test_what_is_drawn_ahead_is_what_would_have_been_drawn(config, finished, tiny_lcm, tmp_path):
    run = copy_upto(finished, tmp_path / "run", checkpoint=1, rollout=1)
    model = shared_model(tiny_lcm)
    finish(sample(run, model, iteration=2))
    assert read_manifest(run.layout.manifest(2)).policy.checkpoint == 1
    assert run.layout.checkpoints()[-1] == 1
    finish(score(run, load_scorers(run)))  # by default whatever is not trained yet
    finish(train(run, model))
    assert did_nothing(finish(sample(run, model)))
    go_on(run.layout.root, config, model)
    assert fingerprint(run.layout.root) == fingerprint(finished.layout.root)


def test_the_loop_neither_scores_nor_warns_of_what_is_drawn_ahead_in_part(config, finished, tiny_lcm, tmp_path):
    run = copy_upto(finished, tmp_path / "run", checkpoint=1, rollout=2)
    run.layout.shard(2, 1, 2).unlink()
    run.layout.shard(2, 1, 2).with_suffix(".json").unlink()
    shutil.rmtree(run.layout.rollout(2) / "rewards")
    events = finish(loop(run, shared_model(tiny_lcm), load_scorers(run)))
    assert "Warned" not in kinds(events)
    assert fingerprint(run.layout.root) == fingerprint(finished.layout.root)


def test_no_more_than_one_iteration_is_drawn_ahead(finished, tiny_lcm, tmp_path):
    run = copy_upto(finished, tmp_path / "run", checkpoint=1, rollout=1)
    with pytest.raises(MissingFileError, match="000002: no such checkpoint"):
        finish(sample(run, shared_model(tiny_lcm), iteration=3))
    assert run.layout.iterations() == [0, 1]


@pytest.mark.parametrize("drawn_by", ["the newest checkpoint", "another policy"])
def test_a_rollout_that_the_wrong_policy_drew_is_refused(config, finished, tiny_lcm, tmp_path, drawn_by):
    run, model = copy_upto(finished, tmp_path / "run", checkpoint=2, rollout=2), shared_model(tiny_lcm)
    path = run.layout.manifest(2)
    if drawn_by == "the newest checkpoint":
        manifest = read_manifest(path)
        newest = read_trainer_state(run.layout, 2).policy_digest
        policy = manifest.policy.model_copy(update={"checkpoint": 2, "digest": newest})
        path.write_bytes(manifest.model_copy(update={"policy": policy}).encode())
    else:
        with torch.no_grad():
            for parameter in lora_parameters(model).values():
                parameter.add_(0.05)
        quarantine(run.layout.checkpoint(1))
        publish_checkpoint(
            run.layout,
            1,
            write_weights=lambda folder: save_lora(model, folder),
            model_digest=model.digest,
            optimizer={},
            optimizer_steps=0,
            statistics={},
        )
        model.adapter_digest = None
    with pytest.raises(StalePolicyError, match=r"drawn by another policy than checkpoint 1; .* with --off-policy"):
        finish(train(run, model))


def test_the_checkpoint_that_draws_next_is_never_pruned(finished, tiny_lcm, tmp_path):
    config = stale_config(tiny_lcm, runtime={"keep_checkpoints": 1})
    run = make_loop(tmp_path / "run", config)
    assert run.layout.checkpoints() == [0, 2, 3]
    ours, theirs = fingerprint(run.layout.root), fingerprint(finished.layout.root)
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"config.json", "pruned.json"}
    longer = stale_config(tiny_lcm, runtime={"keep_checkpoints": 1, "iterations": 5})
    go_on(run.layout.root, longer, shared_model(tiny_lcm))
    best = best_held_out(read_held_out(run.layout, longer))
    assert run.layout.checkpoints() == sorted({0, best, 4, 5})
    assert read_manifest(run.layout.manifest(4)).policy.checkpoint == 3


def test_the_best_checkpoint_is_the_one_that_drew_the_best_images(config):
    rows = [
        make_row(number, monitored={"sharpness": value}, reward_stds={"sharpness": 1.0})
        for number, value in enumerate([0.0, 1.0, 2.0, 9.0, 1.0])
    ]
    monitor = parse_config(
        {"task": "t", "rewards": {"compressibility": 1.0}, "monitor": {"rewards": ["sharpness"], "window": 1}}
    ).monitor
    assert best_checkpoints(rows, monitor) == {"sharpness": 3}
    assert best_checkpoints(rows, monitor, config.sample) == {"sharpness": 2}


def test_in_16_bits_the_policy_that_drew_is_measured_with_the_ruler_of_training(tiny_lcm, tmp_path):
    config = override_config(stale_config(tiny_lcm, runtime={"iterations": 1}), flags={"model.dtype": "bfloat16"})
    run, model = create_run(tmp_path / "run", config), load_policy_model(config)
    finish(loop(run, model, load_scorers(run)))
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    rollout = read_rollout(run, model, load_checkpoint(run, model, 1), off_policy=False)
    refreshed = refresh_stale(run, gather_data(run, model, rollout, np.ones(8), None))
    assert model.adapter_digest == read_trainer_state(run.layout, 1).policy_digest
    found = refreshed.learner.rollout.trajectories.log_probs_BA
    by_newest, _ = refresh_log_probs(model, rollout, 8)
    load_checkpoint(run, model, 0)
    by_drawer, _ = refresh_log_probs(model, rollout, 8)
    assert torch.equal(found, by_drawer.trajectories.log_probs_BA)
    assert not torch.equal(found, by_newest.trajectories.log_probs_BA)

    (metrics,) = [event.metrics for event in finish(train(run, model)) if isinstance(event, IterationTrained)]
    moved = (by_newest.trajectories.log_probs_BA - found).exp().sub(1).abs().max().item()
    assert metrics.measured["ratio_drift"] == pytest.approx(moved, rel=1e-3)
    (before,) = read_metrics(run.layout)[:1]
    assert (before.measured["refreshed"], metrics.measured["refreshed"]) == (1, 1)
    # A single update on its own policy's samples needs no pass of its own for them.
    assert metrics.forwards - before.forwards == 8 * 3


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": {"kind": "rwr"}},
        {"objective": {"kind": "rebel"}, "sample": {"group_size": 2}},
        {"objective": {"kind": "grpo"}, "sample": {"group_size": 2}},
        {"train": {"parameters": "full"}},
    ],
    ids=["rwr", "rebel", "grpo", "full"],
)
def test_other_objectives_and_full_training_take_stale_samples(tiny_lcm, tmp_path, sections):
    config = stale_config(tiny_lcm, **sections)
    run = make_by_hand(tmp_path / "run", config)
    assert [read_manifest(run.layout.manifest(number)).policy.checkpoint for number in range(3)] == [0, 0, 1]
    assert run.layout.checkpoints() == [0, 1, 2, 3]
