"""Rewards: functions from images and their prompts to one number per image; higher is better.

A module of this folder that does not begin with an underscore declares one reward or several: its constant `ENTRIES`
holds a `RewardEntry` for each name. The packages are what rewards are made of:

    base       what a reward is, how it is found and loaded, weights
    networks   networks of transformers and what goes into them
    judges     vision-language models that answer questions about images
    custom     functions of the user's own
    remote     rewards behind a server
    http       requests to servers

Importing this package imports neither torch nor a model; `load_reward` does.
"""

from rlcm_cli.discovery import discover_entries
from rlcm_cli.rewards.base.contract import Reward, RewardEntry, RewardFn, SetRewardFn
from rlcm_cli.rewards.base.registry import RewardSpec, is_address, is_code, load_reward
from rlcm_cli.rewards.base.weights import WeightFile, Weights

REWARDS: dict[str, RewardEntry] = discover_entries(__name__, __path__, "ENTRIES", RewardEntry)
"""Every reward of the package, by its name."""

__all__ = [
    "REWARDS",
    "Reward",
    "RewardEntry",
    "RewardFn",
    "RewardSpec",
    "SetRewardFn",
    "WeightFile",
    "Weights",
    "is_address",
    "is_code",
    "load_reward",
]
