"""What a reward is, and the check that every batch of rewards passes before it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from rlcm_cli.errors import RewardError

if TYPE_CHECKING:
    from torch import Tensor


class RewardFn(Protocol):
    """Gives each image of a batch a number; higher is better.

    The same arguments give the same numbers, and no gradient flows.

    Args:
        images: uint8 [B, 3, H, W], RGB.
        prompts: B prompts, the ones that the images were drawn for.
        metadata: B mappings of whatever else is known of each sample, such as its id.

    Returns:
        float32 [B].

    Raises:
        RewardError: If the reward is not defined for a sample.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]], /) -> Tensor:
        """Return one reward an image."""
        ...


def score_images(
    reward: RewardFn,
    name: str,
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, object]],
) -> Tensor:
    """Call a reward and check what it returns.

    Args:
        reward: The reward.
        name: Its name, for error messages.
        images: uint8 [B, 3, H, W], RGB.
        prompts: B prompts.
        metadata: B mappings.

    Returns:
        Finite rewards, float32 [B], on the CPU.

    Raises:
        RewardError: If the reward raises it, or returns no float32 tensor, not B values, or a value that is
            NaN or infinite.
    """
    import torch

    rewards = reward(images, prompts, metadata)
    if not isinstance(rewards, torch.Tensor) or rewards.dtype != torch.float32:
        found = rewards.dtype if isinstance(rewards, torch.Tensor) else type(rewards).__name__
        raise RewardError(f"reward {name!r} returned {found}, not a float32 tensor; mend the reward")
    if tuple(rewards.shape) != (len(images),):
        raise RewardError(
            f"reward {name!r} returned shape {list(rewards.shape)} for {len(images)} images, "
            f"not [{len(images)}]; mend the reward"
        )
    rewards = rewards.detach().cpu()
    broken = (~torch.isfinite(rewards)).nonzero().flatten().tolist()
    if broken:
        first = broken[0]
        raise RewardError(
            f"reward {name!r} gave {rewards[first].item()} for {len(broken)} of {len(images)} samples, "
            f"the first being sample {first}, prompt {prompts[first]!r}, metadata {dict(metadata[first])}; "
            "look at its image and mend the reward"
        )
    return rewards
