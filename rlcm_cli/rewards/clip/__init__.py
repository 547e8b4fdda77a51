"""Rewards of CLIP and its relatives, and of ImageReward: similarity to the prompt, aesthetics, people's preferences.

    clip_model     a contrastive image-text model of transformers: images and prompts → unit vectors
    preprocessing  uint8 images → what a vision tower takes, without Pillow, on any device
    tensor_file    one published file of tensors, here or on the hub, read without running its code
    linear_head    the stack of linear layers on top of aesthetic and image_reward

No package of the models' authors is needed, only transformers.
"""

from __future__ import annotations

from rlcm_cli.rewards.clip.aesthetic import ENTRIES as AESTHETIC
from rlcm_cli.rewards.clip.clip_score import ENTRIES as CLIP_SCORE
from rlcm_cli.rewards.clip.image_reward import ENTRIES as IMAGE_REWARD
from rlcm_cli.rewards.clip.preference import ENTRIES as PREFERENCE

ENTRIES = {**CLIP_SCORE, **AESTHETIC, **PREFERENCE, **IMAGE_REWARD}
