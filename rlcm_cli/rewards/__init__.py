"""Rewards: functions from images and their prompts to one number an image; higher is better.

Importing this package imports neither torch nor a model; `load_reward` does.
"""

from rlcm_cli.rewards.contract import Reward, RewardEntry, RewardFn, SetRewardFn
from rlcm_cli.rewards.registry import REWARDS, RewardSpec, is_address, is_code, load_reward

__all__ = [
    "REWARDS",
    "Reward",
    "RewardEntry",
    "RewardFn",
    "RewardSpec",
    "SetRewardFn",
    "is_address",
    "is_code",
    "load_reward",
]
