"""How much people would like an image, whatever its prompt: the LAION aesthetic predictor (DDPO, arXiv 2305.13301)."""

from __future__ import annotations

from pathlib import Path

from rlcm_cli.errors import RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.base.weights import WeightFile
from rlcm_cli.rewards.networks.clip_model import CLIP_L14, load_clip
from rlcm_cli.rewards.networks.linear_head import make_linear_head
from rlcm_cli.rewards.networks.tensor_file import read_tensors

HEAD = WeightFile("trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth", "3.7 MB")
"""The published sac+logos+ava1-l14-linearMSE.pth, a pickle, where a hub has it."""


def aesthetic(model: Path, head: Path) -> RewardFn:
    """Make the reward: the LAION head on the L2-normalised image embedding of CLIP ViT-L/14.

    Args:
        model: Folder of the CLIP model.
        head: File of the linear layers 768-1024-128-64-16-1: the published sac+logos+ava1-l14-linearMSE.pth, or the
            same tensors as safetensors.

    Raises:
        RewardError: If the model or the head cannot be loaded, or they do not fit.
    """
    layers = make_linear_head(read_tensors(head, reward="aesthetic"), reward="aesthetic")
    clip = load_clip(model, reward="aesthetic")
    width = clip.network.config.projection_dim
    if layers.width != width:
        raise RewardError(
            f"reward 'aesthetic': the head takes embeddings of {layers.width} values, and the model in {model} gives "
            f"{width}; the published head belongs to {CLIP_L14.source}"
        )
    return lambda images, prompts, metadata: layers.to(images.device)(clip.embed_images(images))


ENTRIES = {
    "aesthetic": RewardEntry(
        aesthetic,
        description="how much people would like the image: the LAION predictor on CLIP ViT-L/14",
        value_range="ratings of about 1 to 10, mostly 4 to 7",
        weights={"model": CLIP_L14, "head": HEAD},
        neural=True,
        differentiable=True,
    ),
}
