"""Old log-probabilities in 16 bits: taken from training itself, so that the first ratio is 1."""

import dataclasses

import pytest
import torch
from phase_runs import finish, make_config

from rlcm_cli.config import override_config
from rlcm_cli.core.schedule import sample_trajectories
from rlcm_cli.errors import TrainingError
from rlcm_cli.events import Warned
from rlcm_cli.learning.costs import count_iteration_forwards
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.log_probs import (
    RATIO_TOLERANCE,
    check_ratio,
    needs_refresh,
    refresh_log_probs,
    refresh_passes,
)
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives import find_objective
from rlcm_cli.phases import sample as sample_module
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train
from rlcm_cli.processes.job import Processes
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.checkpoint import read_trainer_state

SEVERAL = {"minibatch_size": 4}


@pytest.fixture
def coarse(monkeypatch):
    """Let drawing round its log-probabilities as 16 bits do on a GPU: on a CPU so small a model hardly drifts."""

    def draw(*arguments):
        trajectories, final = sample_trajectories(*arguments)
        noise = torch.randn(trajectories.log_probs_BA.shape, generator=torch.Generator().manual_seed(0))
        return dataclasses.replace(trajectories, log_probs_BA=trajectories.log_probs_BA + 5e-4 * noise), final

    monkeypatch.setattr(sample_module, "sample_trajectories", draw)


def configure(folder, dtype="bfloat16", **sections):
    return override_config(make_config(folder, **sections), flags={"model.dtype": dtype})


def draw_and_score(root, config):
    run, model = create_run(root, config), load_policy_model(config)
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    return run, model


def make_rollout(root, config):
    """Give a scored rollout and the model that drew it."""
    run, model = draw_and_score(root, config)
    return model, read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)


def first_update(model, rollout, config, *, old_is_present=False):
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    count = len(rollout.trajectories)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    every = Minibatch(order, torch.arange(rollout.trajectories.actions).expand(count, -1))
    learner = Learner(model, rollout, torch.linspace(-1, 1, count), config, old_is_present=old_is_present)
    record = find_objective(config).accumulate(learner, every)
    return record.values, torch.cat([p.grad.flatten() for p in lora_parameters(model).values()])


@pytest.mark.parametrize(("objective", "settings"), [("ppo", {}), ("ppo", SEVERAL), ("rebel", {})])
@pytest.mark.usefixtures("coarse")
def test_a_run_in_bfloat16_refreshes_and_its_ratio_is_1(tiny_lcm, tmp_path, objective, settings):
    config = configure(tiny_lcm, objective={"kind": objective}, train=settings, sample={"group_size": 2})
    events = finish(train(*draw_and_score(tmp_path / "run", config)))
    metrics = events[-1].metrics
    assert metrics.measured["refreshed"] == 1
    assert 5e-4 < metrics.measured["ratio_drift"] < 2e-2
    if settings != SEVERAL:  # there the policy moves between the updates
        assert (metrics.measured["ratio"], metrics.measured["approx_kl"]) == (1, 0)
    told = [event.message for event in events if isinstance(event, Warned) and "rounding in bfloat16" in event.message]
    assert len(told) == ("clip_fraction" in metrics.measured)
    assert all("taken from training itself" in message for message in told)


def test_a_run_in_float32_keeps_what_was_stored(tiny_lcm, tmp_path):
    metrics = finish(train(*draw_and_score(tmp_path / "run", make_config(tiny_lcm))))[-1].metrics
    assert metrics.measured["refreshed"] == 0
    assert metrics.measured["ratio_drift"] <= RATIO_TOLERANCE["float32"]


@pytest.mark.usefixtures("coarse")
def test_after_a_pass_over_all_transitions_the_first_ratio_is_exactly_1(tiny_lcm, tmp_path):
    config = configure(tiny_lcm)
    model, rollout = make_rollout(tmp_path / "run", config)
    stored = rollout.trajectories.log_probs_BA.clone()
    before, _ = first_update(model, rollout, config)
    refreshed, drift = refresh_log_probs(model, rollout, config.runtime.micro_batch_size)
    after, _ = first_update(model, refreshed, config)
    assert drift == pytest.approx(before["ratio_drift"], rel=1e-5)
    assert drift > 5e-4
    assert after["ratio_drift"] == 0
    assert torch.equal(rollout.trajectories.log_probs_BA, stored)
    assert refreshed.trajectories.log_probs_BA.shape == stored.shape
    assert torch.equal(refreshed.trajectories.latents_BSCHW, rollout.trajectories.latents_BSCHW)


@pytest.mark.usefixtures("coarse")
def test_the_only_update_takes_its_own_log_probabilities_as_a_pass_before_it_would(tiny_lcm, tmp_path):
    config = configure(tiny_lcm)
    model, rollout = make_rollout(tmp_path / "run", config)
    refreshed, drift = refresh_log_probs(model, rollout, config.runtime.micro_batch_size)
    _, with_pass = first_update(model, refreshed, config)
    values, alone = first_update(model, rollout, config, old_is_present=True)
    _, clipped = first_update(model, rollout, config)
    assert torch.equal(alone, with_pass)
    assert not torch.allclose(clipped, with_pass, rtol=0.1)  # clipping at random does harm
    assert (values["ratio"], values["clip_fraction"]) == (1, 0)
    assert values["ratio_drift"] == pytest.approx(drift, rel=1e-5)


def test_each_process_replays_its_part(tiny_lcm, tmp_path):
    config = make_config(tiny_lcm)
    model, rollout = make_rollout(tmp_path / "run", config)
    whole, _ = refresh_log_probs(model, rollout, 8)

    class Part(Processes):
        def sum(self, tensor):
            pass

    parts = [refresh_log_probs(model, rollout, 8, Part(rank, 2))[0].trajectories.log_probs_BA for rank in range(2)]
    assert not any(torch.equal(part, whole.trajectories.log_probs_BA) for part in parts)
    assert torch.allclose(parts[0] + parts[1], whole.trajectories.log_probs_BA, atol=2e-6, rtol=0)


def test_nan_is_not_hidden(tiny_lcm, tmp_path):
    config = configure(tiny_lcm)
    model, rollout = make_rollout(tmp_path / "run", config)
    broken = rollout.trajectories.latents_BSCHW.clone()
    broken[3, 1, 0, 0, 0] = torch.nan
    trajectories = dataclasses.replace(rollout.trajectories, latents_BSCHW=broken)
    _, drift = refresh_log_probs(model, dataclasses.replace(rollout, trajectories=trajectories), 8)
    with pytest.raises(TrainingError, match="NaN"):
        check_ratio(drift, "bfloat16", "000000")


@pytest.mark.parametrize(
    ("dtype", "sections", "refreshed", "passes"),
    [
        ("float32", {}, False, 0),
        ("float32", {"train": SEVERAL}, False, 0),
        ("bfloat16", {}, True, 0),
        ("bfloat16", {"train": SEVERAL}, True, 1),
        ("bfloat16", {"train": {"inner_epochs": 2}}, True, 1),
        ("bfloat16", {"objective": {"kind": "rebel"}, "sample": {"group_size": 2}}, True, 1),
        ("bfloat16", {"objective": {"kind": "rwr"}}, False, 0),
        ("float32", {"runtime": {"tf32": True}, "train": SEVERAL}, True, 1),
    ],
)
def test_what_is_refreshed_and_what_it_costs(tiny_lcm, dtype, sections, refreshed, passes):
    config = configure(tiny_lcm, dtype, **sections)
    assert (needs_refresh(config), refresh_passes(config)) == (refreshed, passes)


def test_the_forwards_of_rescoring_are_counted(tiny_lcm, tmp_path):
    config = configure(tiny_lcm, train=SEVERAL)
    model, rollout = make_rollout(tmp_path / "run", config)
    exact = configure(tiny_lcm, "float32", train=SEVERAL)
    costs = [count_iteration_forwards(of, model, rollout, refreshes=refresh_passes(of)) for of in (config, exact)]
    assert costs[0] - costs[1] == 8 * 3


def test_float32_convolutions_are_not_rounded_to_tf32_unless_asked(tiny_lcm):
    try:
        load_policy_model(make_config(tiny_lcm))
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        load_policy_model(make_config(tiny_lcm, runtime={"tf32": True}))
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        load_policy_model(make_config(tiny_lcm))
