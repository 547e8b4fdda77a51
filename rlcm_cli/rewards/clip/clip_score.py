"""Similarity of image and prompt in the eyes of CLIP (CLIPScore, arXiv 2104.08718)."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.clip.clip_model import CLIP_FILES, ClipModel, load_clip
from rlcm_cli.rewards.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.weights import digest_weights, find_weights, missing_weights

CLIP_L14 = "openai/clip-vit-large-patch14"
CLIP_L14_SIZE = "1.7 GB"

_SCALE = 100
_EMOJI_FOLDER = Path(__file__).parent.parent / "emoji_clip"


def clip_score(model: str) -> RewardFn:
    """Make the reward: 100 · cos(image, prompt).

    CLIPScore is w · max(cos, 0) with w = 2.5, so a positive value here is 40 times it, in the unit that torchmetrics
    and most reports use. It is not cut at 0: below it the worst images of a batch would all look the same, and a
    policy could not learn its way out. The prompt goes in as it is, without the "A photo depicts" of CLIPScore, as in
    DDPO.

    Args:
        model: Folder or hub id of a CLIP model of transformers.

    Raises:
        ConfigError: If `model` is no text.
        RewardError: If the model cannot be had.
    """
    folder = find_weights(model, CLIP_FILES, reward="clip_score", size=CLIP_L14_SIZE)
    return _similarity(load_clip(folder, reward="clip_score"))


def emoji_clip() -> RewardFn:
    """Make the reward: 100 · cos(image, prompt) with the model inside the package, trained on the emoji.

    Raises:
        RewardError: If the model is missing from the installation.
    """
    if not _EMOJI_FOLDER.is_dir():
        raise RewardError(f"reward 'emoji_clip': {_EMOJI_FOLDER} is missing from this installation; reinstall rlcm")
    return _similarity(load_clip(_EMOJI_FOLDER, reward="emoji_clip"))


def _similarity(clip: ClipModel) -> RewardFn:
    return lambda images, prompts, metadata: _SCALE * clip.cosines(images, prompts)


ENTRIES = {
    "clip_score": RewardEntry(
        clip_score,
        description="similarity of image and prompt to a CLIP model: 100 times the cosine",
        value_range="-100 to 100, mostly 10 to 35",
        bounds=(-100.0, 100.0),
        needs=f"a CLIP model, by default {CLIP_L14} ({CLIP_L14_SIZE})",
        defaults={"model": CLIP_L14},
        neural=True,
        differentiable=True,
        revise=lambda settings: digest_weights(
            find_weights(settings["model"], CLIP_FILES, reward="clip_score", size=CLIP_L14_SIZE),
            CLIP_FILES,
            reward="clip_score",
        ),
        obstacle=lambda settings: missing_weights(
            settings["model"], CLIP_FILES, reward="clip_score", size=CLIP_L14_SIZE
        ),
    ),
    "emoji_clip": RewardEntry(
        emoji_clip,
        description="similarity of image and prompt to the embedded judge: 100 times the cosine",
        value_range="-100 to 100, 60 to 75 where it fits, below 0 for pictures of nothing",
        bounds=(-100.0, 100.0),
        neural=True,
        differentiable=True,
        revise=lambda settings: digest_weights(_EMOJI_FOLDER, CLIP_FILES, reward="emoji_clip"),
    ),
}
