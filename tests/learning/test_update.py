"""What all updates of an iteration learn from, and how the parts of several processes become one."""

import math

import pytest
import torch
from phase_runs import make_config

from rlcm_cli.learning.optimizer import sum_gradients
from rlcm_cli.learning.update import weigh_samples
from rlcm_cli.processes.job import Processes

ADVANTAGES = torch.tensor([-3.0, 0.5, 20.0])


@pytest.mark.parametrize(
    ("objective", "clip", "expected"),
    [("ppo", 2.0, [-2, 0.5, 2]), ("ppo", 0.0, [-3, 0.5, 20]), ("rwr-sparse", 2.0, [0, 0, 3])],
)
def test_advantages_are_clipped_where_the_objective_takes_more_than_their_order(tiny_lcm, objective, clip, expected):
    config = make_config(tiny_lcm, objective={"kind": objective}, train={"advantage_clip": clip})
    assert weigh_samples(config, ADVANTAGES).tolist() == expected


def test_weights_of_rwr_follow_the_clipped_advantages(tiny_lcm):
    config = make_config(tiny_lcm, objective={"kind": "rwr", "beta": 1.0}, train={"advantage_clip": 1.0})
    weights = weigh_samples(config, ADVANTAGES)
    assert (weights[2] / weights[0]).item() == pytest.approx(math.exp(2), rel=1e-5)


def test_one_process_has_the_whole_gradient_already():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    sum_gradients([parameter, torch.nn.Parameter(torch.zeros(3))], Processes())
    assert parameter.grad.tolist() == [1, 1]
