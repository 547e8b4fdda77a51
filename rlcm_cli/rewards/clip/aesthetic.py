"""How much people would like an image, whatever its prompt: the LAION aesthetic predictor (DDPO, arXiv 2305.13301)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.clip.clip_model import CLIP_FILES, join_digests, load_clip
from rlcm_cli.rewards.clip.clip_score import CLIP_L14, CLIP_L14_SIZE
from rlcm_cli.rewards.clip.linear_head import make_linear_head
from rlcm_cli.rewards.clip.tensor_file import digest_file, find_file, missing_file, read_tensors
from rlcm_cli.rewards.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.weights import digest_weights, find_weights, missing_weights

HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
"""The published sac+logos+ava1-l14-linearMSE.pth, a pickle, where a hub has it."""

_HEAD_SIZE = "3.7 MB"


def aesthetic(model: str, head: str) -> RewardFn:
    """Make the reward: the LAION head on the L2-normalised image embedding of CLIP ViT-L/14.

    Args:
        model: Folder or hub id of the CLIP model.
        head: File of the linear layers 768-1024-128-64-16-1, here or as OWNER/REPOSITORY/FILE of the hub: the
            published sac+logos+ava1-l14-linearMSE.pth, or the same tensors as safetensors.

    Raises:
        ConfigError: If a setting is no text.
        RewardError: If the model or the head cannot be had, or they do not fit.
    """
    layers = make_linear_head(
        read_tensors(find_file(head, reward="aesthetic", setting="head", size=_HEAD_SIZE), reward="aesthetic"),
        reward="aesthetic",
    )
    folder = find_weights(model, CLIP_FILES, reward="aesthetic", size=CLIP_L14_SIZE)
    clip = load_clip(folder, reward="aesthetic")
    width = clip.network.config.projection_dim
    if layers.width != width:
        raise RewardError(
            f"reward 'aesthetic': the head takes embeddings of {layers.width} values, and the model in {folder} gives "
            f"{width}; the published head belongs to {CLIP_L14}"
        )
    return lambda images, prompts, metadata: layers.to(images.device)(clip.embed_images(images))


def _revise(settings: Mapping[str, Any]) -> str:
    folder = find_weights(settings["model"], CLIP_FILES, reward="aesthetic", size=CLIP_L14_SIZE)
    head = find_file(settings["head"], reward="aesthetic", setting="head", size=_HEAD_SIZE)
    return join_digests(digest_weights(folder, CLIP_FILES, reward="aesthetic"), digest_file(head))


def _obstacle(settings: Mapping[str, Any]) -> str | None:
    return missing_weights(settings["model"], CLIP_FILES, reward="aesthetic", size=CLIP_L14_SIZE) or missing_file(
        settings["head"], reward="aesthetic", setting="head", size=_HEAD_SIZE
    )


ENTRIES = {
    "aesthetic": RewardEntry(
        aesthetic,
        description="how much people would like the image: the LAION predictor on CLIP ViT-L/14",
        value_range="ratings of about 1 to 10, mostly 4 to 7",
        needs=f"{CLIP_L14} ({CLIP_L14_SIZE}) and {HEAD} ({_HEAD_SIZE})",
        defaults={"model": CLIP_L14, "head": HEAD},
        neural=True,
        differentiable=True,
        revise=_revise,
        obstacle=_obstacle,
    ),
}
