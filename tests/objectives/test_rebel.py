"""REBEL's own: whole pairs of whole trajectories, and a pass before the one with a gradient."""

import pytest

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.objectives import _policy_gradient as policy_gradient
from rlcm_cli.objectives.rebel import count_forwards


def configure(train=None, **sample):
    sections = {"objective": {"kind": "rebel"}, "sample": {"group_size": 2, **sample}, "train": train or {}}
    return parse_config({"task": "mine", "rewards": {"compressibility": 1.0}, **sections})


@pytest.mark.parametrize(
    ("train", "sample", "words"),
    [
        ({}, {"group_size": 1}, "an even number"),
        ({"minibatch_size": 2}, {"group_size": 4}, "pairs would be torn"),
        ({"timestep_fraction": 0.5}, {}, "whole trajectories"),
    ],
)
def test_what_leaves_no_whole_pairs_is_refused(train, sample, words):
    with pytest.raises(ConfigError, match=words):
        configure(train, **sample)


def test_it_takes_one_pass_more():
    config = configure({"inner_epochs": 3})
    assert count_forwards(config, 4) == policy_gradient.count_forwards(config, 4) + 3 * 4
