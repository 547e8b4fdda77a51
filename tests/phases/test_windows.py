"""A sampler that draws noise at some calls in the middle, through the phases."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from phase_runs import finish, make_config

from rlcm_cli.core.schedule import Schedule
from rlcm_cli.errors import ForeignFileError
from rlcm_cli.learning.last_step import draw_images
from rlcm_cli.measuring.memory import fit_training, shorten
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.runs.policy import load_checkpoint, load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.metrics import read_metrics
from rlcm_cli.store.rollouts import read_shard
from rlcm_cli.store.shards import publish_record, read_record

CALLS = 5


def draw_only_at(model, *calls: int):
    """Let the model's sampler draw noise at some calls, at times that are not whole, from noise that is scaled."""
    own = model.sampler.schedule

    def schedule(*arguments: object) -> Schedule:
        whole = own(*arguments)
        chosen = torch.tensor([call in calls for call in range(CALLS)])
        return Schedule(
            whole.timesteps + 0.25,
            whole.next_timesteps + 0.25,
            whole.latents_coef,
            whole.output_coef,
            torch.where(chosen, whole.std, 0.0),
            initial_scale=1.25,
        )

    model.sampler = dataclasses.replace(model.sampler, schedule=schedule)
    return model


@pytest.fixture
def windowed(tiny_lcm, tmp_path):
    def make(*calls, **sections):
        config = make_config(tiny_lcm, sample={"steps": CALLS, "samples": 8}, **sections)
        model = draw_only_at(load_policy_model(config), *calls)
        run = create_run(tmp_path / "run", config)
        finish(sample(run, model))
        finish(score(run, load_scorers(run)))
        return run, model

    return make


@pytest.mark.parametrize(("calls", "states"), [((1, 2), 4), ((0, 3), 4), ((2,), 3)])
def test_the_chosen_calls_are_trained(windowed, calls, states):
    run, model = windowed(*calls)
    manifest = read_manifest(run.layout.manifest(0))
    assert (manifest.schedule.action_calls, manifest.schedule.states) == (list(calls), states)
    assert manifest.schedule.initial_scale == 1.25
    shard = read_shard(run.layout, manifest, 0)
    assert shard.trajectories.latents_BSCHW.shape[1] == states
    assert shard.trajectories.timesteps_A2.tolist() == manifest.schedule.transitions
    assert shard.trajectories.timesteps_A2.dtype == torch.float64

    metrics = finish(train(run, model))[-1].metrics
    assert metrics.measured["ratio_drift"] < 2e-6
    assert metrics.checkpoint == 1


@pytest.mark.parametrize("calls", [(1, 2), (0, 3)])
def test_the_image_follows_from_the_last_state(windowed, calls):
    """So that the last call can be trained by back-propagation, whichever calls draw."""
    run, model = windowed(*calls, last_step={"mode": "backprop"}, rewards={"brightness": 1.0})
    state = load_checkpoint(run, model, 0)
    rollout = read_rollout(run, model, state, off_policy=False)
    with torch.no_grad():
        images = draw_images(model, rollout, torch.arange(8), 1)
    shards = [read_shard(run.layout, rollout.manifest, number) for number in range(len(rollout.manifest.shards))]
    stored = torch.cat([shard.images for shard in shards])
    assert (images.round() - stored.float()).abs().max() <= 1


@pytest.mark.parametrize(("calls", "steps"), [((0, 2), 2), ((3,), CALLS)])
def test_memory_is_measured_with_as_many_calls_as_draw_noise(tiny_lcm, calls, steps):
    config = make_config(tiny_lcm, sample={"steps": CALLS})
    model = load_policy_model(config)
    own = model.sampler.schedule

    def schedule(settings, noise, count, last_std):
        whole = own(settings, noise, count, last_std)
        return dataclasses.replace(whole, std=whole.std * torch.tensor([call in calls for call in range(count)]))

    model.sampler = dataclasses.replace(model.sampler, schedule=schedule)
    assert shorten(config, model).sample.steps == steps
    assert fit_training(config, model, 10**12).micro_batch_size > 1


def test_a_shard_with_other_states_than_its_plan_is_refused(windowed):
    run, _ = windowed(0, 3)
    manifest = read_manifest(run.layout.manifest(0))
    path = run.layout.shard(0, 0, len(manifest.shards))
    tensors, fields = read_record(path, "rollout")
    fields = {key: value for key, value in fields.items() if key not in ("format_version", "kind")}
    for file in path.parent.glob(f"{path.stem}.*"):
        file.unlink()
    tensors["latents"] = tensors["latents"][:, :3].clone()
    publish_record(path, "rollout", tensors, json.loads(json.dumps(fields)))
    with pytest.raises(ForeignFileError, match="has 3 states a sample, and its plan 4; "):
        read_shard(run.layout, manifest, 0)


@pytest.mark.parametrize(
    ("settings", "windows"),
    [
        ({"window_size": 1, "window_every": 1}, [[0], [1], [2]]),
        ({"window": [1, 2, 3], "window_size": 2, "window_every": 2}, [[1, 2], [1, 2], [2, 3]]),
    ],
)
def test_each_iteration_has_its_window_and_its_manifest_says_which(tiny_lcm, tmp_path, settings, windows):
    config = make_config(
        tiny_lcm,
        sampler={"kind": "lcm", **settings},
        sample={"steps": CALLS, "samples": 8},
        runtime={"iterations": 3},
    )
    run = create_run(tmp_path / "run", config)
    finish(loop(run, load_policy_model(config), load_scorers(run)))
    assert len(read_metrics(run.layout)) == 3
    for iteration, window in enumerate(windows):
        manifest = read_manifest(run.layout.manifest(iteration))
        assert manifest.schedule.action_calls == window
        shard = read_shard(run.layout, manifest, 0)
        assert shard.trajectories.calls_A.tolist() == window
        assert shard.trajectories.log_probs_BA.shape[1] == len(window)


def test_outside_of_training_as_many_calls_draw_noise(tiny_lcm):
    config = make_config(tiny_lcm, sampler={"kind": "lcm", "window_size": 2}, sample={"steps": CALLS})
    model = load_policy_model(config)
    found = drawing_schedule(config.sampler, CALLS, model)
    assert found.actions == 2
    assert found.action_calls.tolist() == drawing_schedule(config.sampler, CALLS, model).action_calls.tolist()
    without = config.sampler.model_copy(update={"eta": 0.0})
    assert drawing_schedule(without, CALLS, model).actions == 0
    assert model.sampler.in_diffusers(config.sampler, model.noise, CALLS) is None
