"""The reward that people give: known by its name, asked by no phase, served by nobody."""

from __future__ import annotations

import pytest
import torch

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.rewards.remote.served import load_served


def test_it_has_no_number_for_an_image_that_nobody_saw():
    reward = load_reward(RewardSpec("votes"))
    assert reward.by_people
    assert not load_reward(RewardSpec("sharpness")).by_people
    with pytest.raises(RewardError, match="collect their votes with `rlcm vote RUN`"):
        reward.score(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["cat"], [{}])


def test_it_is_not_served():
    with pytest.raises(ConfigError, match="given by people"):
        load_served([RewardSpec("votes")])
