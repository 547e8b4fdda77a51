"""Similarity of image and prompt to a CLIP model (CLIPScore, arXiv 2104.08718)."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import find_embedded
from rlcm_cli.rewards.networks.clip_model import CLIP_L14, load_clip

_SCALE = 100
_EMBEDDED = CLIP_L14.embedded


def clip_score(model: Path) -> RewardFn:
    """Make the reward: 100 · cos(image, prompt).

    CLIPScore is w · max(cos, 0) with w = 2.5, so a positive value here is 40 times it, in the unit that torchmetrics
    and most reports use. It is not cut at 0: the worst images of a batch would then all have the same value, and a
    policy could not learn its way out. The prompt goes in as it is, without the "A photo depicts" of CLIPScore, as in
    DDPO.

    Args:
        model: Folder of a CLIP model of transformers.

    Raises:
        RewardError: If the model cannot be loaded.
    """
    return _make_similarity(model, "clip_score")


def emoji_clip() -> RewardFn:
    """Make the reward: 100 · cos(image, prompt) with the model inside the package, trained on the emoji.

    Raises:
        RewardError: If the model is missing from the installation.
    """
    return _make_similarity(find_embedded(_EMBEDDED, reward="emoji_clip"), "emoji_clip")


def _make_similarity(folder: Path, reward: str) -> RewardFn:
    clip = load_clip(folder, reward=reward)
    return lambda images, prompts, metadata: _SCALE * clip.cosines(images, prompts)


def _revise_emoji_clip(settings: Settings) -> str:
    return CLIP_L14.digest(find_embedded(_EMBEDDED, reward="emoji_clip"), reward="emoji_clip")


ENTRIES = {
    "clip_score": RewardEntry(
        clip_score,
        description="similarity of image and prompt to a CLIP model: 100 times the cosine",
        value_range="-100 to 100, mostly 10 to 35",
        bounds=(-100.0, 100.0),
        weights={"model": CLIP_L14},
        neural=True,
        differentiable=True,
    ),
    "emoji_clip": RewardEntry(
        emoji_clip,
        description="similarity of image and prompt to the embedded judge: 100 times the cosine",
        value_range="-100 to 100, 60 to 75 where it fits, below 0 for pictures of nothing",
        bounds=(-100.0, 100.0),
        neural=True,
        differentiable=True,
        revise=_revise_emoji_clip,
    ),
}
