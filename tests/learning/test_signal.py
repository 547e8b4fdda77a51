"""Whether an iteration has anything to teach: rewards that differ, and a learning rate above 0."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlcm_cli.config import Config, parse_config
from rlcm_cli.learning.signal import describe_rest, find_no_signal, starts_to_rest
from rlcm_cli.objectives import OBJECTIVES, find_objective


def configure(kind: str, **sections) -> Config:
    values = {"task": "t", "rewards": {"brightness": 1.0}, "objective": {"kind": kind}, "sample": {"group_size": 2}}
    return parse_config({**values, **sections})


def no_signal(config, advantages, rewards, pathwise=(), pairs=None):
    rollout = SimpleNamespace(rewards=torch.tensor(rewards), tasks=["t"] * len(rewards))
    learner = SimpleNamespace(rollout=rollout, config=config, pairs=pairs)
    data = SimpleNamespace(objective=find_objective(config), learner=learner, pathwise=list(pathwise))
    return find_no_signal(data, np.array(advantages))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_rewards_that_differ_teach_and_equal_ones_do_not(kind):
    assert no_signal(configure(kind), [1.0, -1.0], [3.0, 1.0]) is None
    assert no_signal(configure(kind), [0.0, 0.0], [3.0, 3.0]) == (
        "all rewards are equal (3), so that there is nothing to learn from; the policy stays as it is"
    )


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_equal_advantages_teach_where_they_are_not_compared_with_each_other(kind):
    differences_only = OBJECTIVES[kind].advantages.differences_only
    assert differences_only == (kind in ("rebel", "rwr", "rwr-sparse"))
    found = no_signal(configure(kind), [0.5, 0.5], [3.0, 3.0])
    assert (found is not None) == differences_only


def test_the_gradient_through_the_last_call_is_a_signal():
    pathwise = [SimpleNamespace(factors=torch.tensor([0.0, 1.0]))]
    assert no_signal(configure("ppo"), [0.0, 0.0], [3.0, 3.0], pathwise) is None


def test_a_table_of_pairs_is_a_signal():
    assert no_signal(configure("pso"), [0.0, 0.0], [3.0, 3.0], pairs=torch.tensor([[1, 0]])) is None


def test_a_run_whose_rate_has_decayed_to_0_is_told_so_once():
    train = {"lr_decay_iterations": 4, "learning_rate": 1e-3}
    config = configure("ppo", train=train, runtime={"iterations": 10})
    resting = [iteration for iteration in range(10) if starts_to_rest(config, iteration)]
    assert len(resting) == 1
    assert describe_rest(config, resting[0]) is None, "training tells that"
    assert describe_rest(config, resting[0] + 1).startswith("the learning rate has decayed to 0")
    assert describe_rest(config, 10) is None
