"""An objective that learns from final latents beside the old policy, and from no actions: what the phases give it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from phase_runs import finish, make_config, prepare
from safetensors.torch import load_file

import rlcm_cli.objectives
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.errors import ConfigError, ForeignFileError
from rlcm_cli.learning.learner import LARGEST, Learner, UpdateMetrics
from rlcm_cli.learning.replay import pick_conditioning
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.objectives import OBJECTIVES, Need
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import read_shard
from rlcm_cli.store.shards import publish_record, read_record
from rlcm_cli.store.verification import verify_run

NEEDS = frozenset({Need.FINAL_LATENTS, Need.OLD_POLICY})


def accumulate(learner, minibatch):
    """Go from the old policy's prediction at the final latents along the advantage, and not too far."""
    rollout, model = learner.rollout, learner.model
    samples = minibatch.samples_M
    times = torch.full((len(samples),), 499)
    inputs = (
        rollout.final_latents[samples],
        times,
        pick_conditioning(model, rollout, samples),
        rollout.manifest.schedule.guidance_scale,
    )
    with learner.old_policy():
        old = model.predict(*inputs)
    new = model.predict(*inputs)
    distance = (new - old).square().mean()
    (distance - 1e-3 * (learner.weights[samples].view(-1, 1, 1, 1) * new).mean()).backward()
    return UpdateMetrics({"distance": distance.item(), LARGEST: 0.0})


def change_ppo(monkeypatch, **changes):
    changed = dataclasses.replace(rlcm_cli.objectives.OBJECTIVES["ppo"], **changes)
    monkeypatch.setattr("rlcm_cli.objectives.OBJECTIVES", {**OBJECTIVES, "ppo": changed})


@pytest.fixture
def imitation(monkeypatch):
    """In the place of PPO, so that a configuration can choose it."""
    change_ppo(monkeypatch, accumulate=accumulate, needs=NEEDS, metrics=("distance",))


def configure(model, **sections):
    train_settings = {"minibatch_size": 4, **sections.pop("train", {})}
    return make_config(model, sample={"samples": 8, **sections.pop("sample", {})}, train=train_settings, **sections)


def test_final_latents_are_stored_where_they_are_asked_for(tiny_lcm, tmp_path, imitation):
    run, model = prepare(tmp_path / "run", configure(tiny_lcm), upto="sample")
    manifest = read_manifest(run.layout.manifest(0))
    assert manifest.final_latents
    for number in range(len(manifest.shards)):
        shard = read_shard(run.layout, manifest, number)
        assert shard.final_latents.dtype == shard.trajectories.latents_BSCHW.dtype
        assert torch.equal(model.decode(shard.final_latents), shard.images)


def test_no_other_objective_stores_them(tiny_lcm, tmp_path):
    run, _ = prepare(tmp_path / "run", configure(tiny_lcm), upto="sample")
    manifest = read_manifest(run.layout.manifest(0))
    assert not manifest.final_latents
    assert "final_latents" not in load_file(run.layout.shard(0, 0, len(manifest.shards)))
    assert read_shard(run.layout, manifest, 0).final_latents is None


def loop_and_watch(monkeypatch, root, config):
    """Make a run, and give the present and the old weights of each optimizer step."""
    run, model = create_run(root, config), load_policy_model(config)
    seen = []

    def watched(learner: Learner, minibatch):
        now = {name: weights.detach().clone() for name, weights in model.trained.parameters(model).items()}
        seen.append((now, {name: weights.clone() for name, weights in learner.old_weights.items()}))
        return accumulate(learner, minibatch)

    change_ppo(monkeypatch, accumulate=watched)
    finish(loop(run, model, load_scorers(run)))
    assert verify_run(run.layout) == []
    return seen


def are_equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("parameters", ["lora", "full"])
def test_the_old_policy_stays_what_drew_while_the_present_one_moves(
    tiny_lcm, tmp_path, imitation, monkeypatch, parameters
):
    config = configure(tiny_lcm, train={"parameters": parameters, "learning_rate": 1e-2}, runtime={"iterations": 2})
    seen = loop_and_watch(monkeypatch, tmp_path / "run", config)
    assert len(seen) == 4
    for (start, old), (moved, old_then) in (seen[:2], seen[2:]):
        assert are_equal(start, old)
        assert are_equal(old, old_then)
        assert not are_equal(moved, old)
    assert not are_equal(seen[0][1], seen[2][1])


def test_where_an_older_checkpoint_drew_its_weights_are_the_old_ones(tiny_lcm, tmp_path, imitation, monkeypatch):
    config = configure(tiny_lcm, sample={"staleness": 1}, train={"learning_rate": 1e-2}, runtime={"iterations": 2})
    seen = loop_and_watch(monkeypatch, tmp_path / "run", config)
    # Checkpoint 0 drew the second iteration too, which checkpoint 1 begins.
    assert all(are_equal(old, seen[0][1]) for _, old in seen)
    assert not are_equal(seen[2][0], seen[2][1])


def test_a_policy_of_elsewhere_is_refused(tiny_lcm, tmp_path, imitation):
    run, model = prepare(tmp_path / "run", configure(tiny_lcm))
    with pytest.raises(ConfigError, match="compares with the policy that drew") as caught:
        finish(train(run, model, off_policy=True))
    assert "\n" not in str(caught.value)


def test_a_step_is_measured_with_both(tiny_lcm, imitation):
    config = configure(tiny_lcm)
    model = load_policy_model(config)
    own = model.sampler.schedule

    def draw_nothing(*arguments: object) -> Schedule:
        schedule = own(*arguments)
        return dataclasses.replace(schedule, std=torch.zeros_like(schedule.std))

    for schedule in (own, draw_nothing):
        model.sampler = dataclasses.replace(model.sampler, schedule=schedule)
        probe = Probe(config, model, samples=2, batch_size=1, steps=2)
        with probe.undone():
            probe.take_step(3)
        assert probe.transitions_of(3) == 3


def test_without_the_need_there_is_no_old_policy(tiny_lcm):
    config = configure(tiny_lcm)
    learner = Learner(load_policy_model(config), None, torch.zeros(1), config)
    with pytest.raises(RuntimeError, match=r"Need\.OLD_POLICY"), learner.old_policy():
        pass


@pytest.mark.parametrize("asked", [True, False])
def test_a_shard_that_is_not_as_its_plan_says_is_refused(tiny_lcm, tmp_path, monkeypatch, asked):
    change_ppo(monkeypatch, needs=NEEDS if asked else frozenset({Need.ACTIONS}))
    run, _ = prepare(tmp_path / "run", configure(tiny_lcm), upto="sample")
    manifest = read_manifest(run.layout.manifest(0))
    path = run.layout.shard(0, 0, len(manifest.shards))
    tensors, fields = read_record(path, "rollout")
    for file in path.parent.glob(f"{path.stem}.*"):
        file.unlink()
    other = {name: tensor.clone() for name, tensor in tensors.items() if name != "final_latents"}
    if not asked:
        other["final_latents"] = other["latents"][:, -1].clone()
    fields = {
        key: value for key, value in json.loads(json.dumps(fields)).items() if key not in ("format_version", "kind")
    }
    publish_record(path, "rollout", other, fields)
    fault = "lacks the final latents that its plan asks for" if asked else "holds final latents, and its plan asks for"
    with pytest.raises(ForeignFileError, match=fault):
        read_shard(run.layout, manifest, 0)
