"""PSO's own: samples that are in several pairs of a table."""

import dataclasses

import pytest
import torch
from phase_runs import make_config, prepare

from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.minibatches import Minibatch
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.objectives.pso import accumulate
from rlcm_cli.phases.read_rollout import read_rollout
from rlcm_cli.store.checkpoint import read_trainer_state


@pytest.fixture(scope="module")
def learner(tiny_lcm, tmp_path_factory):
    config = make_config(tiny_lcm, objective={"kind": "pso"}, sample={"group_size": 4})
    run, model = prepare(tmp_path_factory.mktemp("runs") / "run", config)
    rollout = read_rollout(run, model, read_trainer_state(run.layout, 0), off_policy=False)
    return Learner(model, rollout, torch.zeros(8), config)


def gradient_of(learner, pairs):
    given = dataclasses.replace(learner, pairs=torch.tensor(pairs))
    loss = accumulate(given, Minibatch(torch.arange(8), torch.arange(3).expand(8, -1))).values["loss"]
    parameters = list(lora_parameters(learner.model).values())
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return loss, gradient


def test_the_loss_of_several_pairs_is_the_mean_of_theirs(learner):
    """Also where they have samples in common."""
    pairs = [(0, 1), (0, 2), (3, 0), (5, 7)]
    loss, gradient = gradient_of(learner, pairs)
    singles = [gradient_of(learner, [pair]) for pair in pairs]
    assert loss == pytest.approx(sum(single for single, _ in singles) / 4, rel=1e-5)
    expected = torch.stack([of_pair for _, of_pair in singles]).mean(0)
    assert expected.abs().max() > 0
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
