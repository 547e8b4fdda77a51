"""Rewards: functions from images and their prompts to one number an image; higher is better.

Importing this package imports neither torch nor a model; `load_reward` does.
"""

from rlcm_cli.rewards.contract import RewardFn, score_images
from rlcm_cli.rewards.registry import REWARDS, RewardEntry, RewardSpec, load_reward

__all__ = ["REWARDS", "RewardEntry", "RewardFn", "RewardSpec", "load_reward", "score_images"]
