"""The step that policy gradients share, where it compares means: in 16 bits, behind by a checkpoint, in a window."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from family_runs import describe_family_run
from model_helpers import load_tiny
from phase_runs import finish, make_config
from tiny_sana import build_sana

from rlcm_cli.cli.app import main
from rlcm_cli.config import override_config
from rlcm_cli.learning.learner import Learner, copy_policy
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.learning.update import weigh_samples
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives import OBJECTIVES, Need, _policy_gradient
from rlcm_cli.phases.loop import loop
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.runs.policy import load_policy_model
from rlcm_cli.runs.run import create_run
from rlcm_cli.store.checkpoint import read_trainer_state
from rlcm_cli.store.metrics import read_metrics

KINDS = [kind for kind, one in OBJECTIVES.items() if {Need.ACTIONS, Need.OLD_POLICY} <= one.needs]


@pytest.fixture(scope="module")
def flow_model(tmp_path_factory):
    return build_sana(tmp_path_factory.mktemp("models") / "sana")


def configure(model, kind, **sections):
    sections = {"sample": {"group_size": 2}, "train": {"minibatch_size": 4}, **sections}
    return make_config(model, objective={"kind": kind}, **sections)


def test_those_that_compare_means_are_known():
    assert {"dppo", "grpo-guard"} <= {*KINDS}
    assert _policy_gradient.count_shift_forwards(configure("none", "dppo"), 3) == 3 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_before_an_update_nothing_has_moved_not_even_by_rounding(tiny_lcm, tmp_path, kind):
    """As in 16 bits, where stored log-probabilities are off by more than any clip range."""
    config = override_config(configure(tiny_lcm, kind), flags={"model.dtype": "bfloat16"})
    run, model = create_run(tmp_path / "run", config), load_policy_model(config)
    finish(sample(run, model))
    finish(score(run, load_scorers(run)))
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    drawn = rollout.trajectories
    off = dataclasses.replace(drawn, log_probs_BA=drawn.log_probs_BA - 0.01)
    rollout = dataclasses.replace(rollout, trajectories=off)
    weights = weigh_samples(config, torch.linspace(-1, 1, 8))
    learner = Learner(model, rollout, weights, config, old_weights=copy_policy(model, config))
    everything = Minibatch(torch.arange(8), torch.arange(3).expand(8, -1))
    measured = OBJECTIVES[kind].accumulate(learner, everything).values
    assert (measured["ratio"], measured["policy_kl"]) == (1.0, 0.0)
    assert 0.005 < measured["ratio_drift"] < 0.05, "that of drawing to replaying is told all the same"
    assert any(parameter.grad.abs().max() > 0 for parameter in lora_parameters(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_old_policy_is_the_checkpoint_that_drew(tiny_lcm, tmp_path, kind):
    config = configure(
        tiny_lcm,
        kind,
        sample={"group_size": 2, "staleness": 1},
        train={"learning_rate": 1e-2},
        runtime={"iterations": 3},
    )
    run = create_run(tmp_path / "run", config)
    finish(loop(run, load_policy_model(config), load_scorers(run)))
    first, *later = (row.measured["policy_kl"] for row in read_metrics(run.layout))
    assert first == 0  # the only update of an iteration, by the policy that drew it
    assert all(kl > 1e-8 for kl in later)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_matching_model_learns_in_a_window_that_moves(flow_model, tmp_path, kind):
    options = describe_family_run(tmp_path, flow_model, load_tiny(flow_model))
    run = tmp_path / "run"
    settings = ["--set=sampler.window_size=1", "--set=sampler.window_every=1", "--set=train.step_weights=noise"]
    settings += ["--set=sampler.noise=flow-sde", "--set=sample.group_size=2", "--iterations=2", f"--objective={kind}"]
    with pytest.raises(SystemExit) as leaving:
        main(["loop", "--no-cache", "--quiet", *map(str, options), *settings, f"--run={run}"])
    assert not leaving.value.code
    plans = [json.loads((run / "rollouts" / f"{number:06}" / "manifest.json").read_text()) for number in range(2)]
    assert [[bool(std) for std in plan["schedule"]["std"]] for plan in plans] == [[1, 0, 0], [0, 1, 0]]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["grad_norm"] > 0 and row["ratio_drift"] < 2e-6 for row in rows)
