"""Rewards of a whole group: how much the images of one prompt differ, and how evenly they fall into classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import ConfigError
from rlcm_cli.rewards.base.contract import RewardEntry, SetRewardFn, Settings
from rlcm_cli.rewards.networks.clip_model import CLIP_L14, ClipModel, load_clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FITZPATRICK = ("very pale", "fair", "light brown", "olive", "brown", "very dark brown")
"""The six types of the Fitzpatrick scale of skin tones, in our own words."""


def diversity(model: Path) -> SetRewardFn:
    """Make the reward: of each image the mean of 1 − cos to the other images of its group, in [0, 2].

    The mean over a group is the mean over its pairs. DDPO's code (arXiv 2305.13301, `diversity_fn`) reports CLIP
    diversity as the mean Euclidean distance between the embeddings of random pairs; here it is the cosine distance,
    whose range is known, over all pairs, and each image is credited with its own part.

    Args:
        model: Folder of a CLIP model of transformers.

    Raises:
        RewardError: If the model cannot be loaded.
    """
    clip = load_clip(model, reward="diversity")
    return lambda images, prompt, metadata: mean_distances(clip.embed_images(images))


def mean_distances(embeddings: Tensor) -> Tensor:
    """Return the mean of 1 − cos of each row to the other rows.

    Args:
        embeddings: Unit vectors, float32 [K, D], K of 2 or more.

    Returns:
        float32 [K], from 0 to 2.
    """
    distances = (1 - embeddings @ embeddings.T).clamp(0, 2).fill_diagonal_(0)
    return distances.sum(dim=1) / (len(embeddings) - 1)


def statistical_parity(model: Path, classes: Sequence[str], template: str) -> SetRewardFn:
    """Make the reward: −‖share of each class among the images of the group − 1/C‖₂, in [−√(1 − 1/C), 0].

    Pinterest's reward for an even distribution of skin tones (arXiv 2401.12244, with 16 images of a prompt). Each
    image counts for the one class whose text is nearest to it in a CLIP model, and all images of the group get the
    same number. 0 needs a group whose size is a multiple of C. The classes and the template are our own: before you
    train, look at a few images to see whether the model tells yours apart.

    Args:
        model: Folder of a CLIP model of transformers.
        classes: C labels, two or more.
        template: Text that a label is put into, in the place of `{}`.

    Raises:
        RewardError: If the model cannot be loaded.
    """
    clip = load_clip(model, reward="statistical_parity")
    return _Parity(clip, [template.replace("{}", label) for label in classes])


def _check_parity(settings: Settings) -> None:
    classes, template = settings["classes"], settings["template"]
    if (
        not isinstance(classes, list | tuple)
        or not all(isinstance(label, str) and label.strip() for label in classes)
        or len(set(classes)) != len(classes)
        or len(classes) < 2
    ):
        raise ConfigError(
            f"reward 'statistical_parity': classes {classes!r} must be a list of two or more different labels"
        )
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ConfigError(
            f"reward 'statistical_parity': template {template!r} must hold {{}} once, where the label goes"
        )


class _Parity:
    """The reward function: a CLIP model and the texts of the classes."""

    def __init__(self, clip: ClipModel, texts: Sequence[str]) -> None:
        self._clip = clip
        self._texts = texts
        self._embeddings: dict[torch.device, Tensor] = {}

    def __call__(self, images: Tensor, prompt: str, metadata: Sequence[Mapping[str, object]]) -> Tensor:
        if images.device not in self._embeddings:
            self._embeddings[images.device] = self._clip.embed_texts(self._texts, images.device)
        labels = (self._clip.embed_images(images) @ self._embeddings[images.device].T).argmax(dim=1)
        return parity(labels, len(self._texts)).expand(len(images)).clone()


def parity(labels: Tensor, classes: int) -> Tensor:
    """Return the negated distance of the labels' histogram to the uniform one.

    Args:
        labels: int64 [K], from 0 to below `classes`.
        classes: Number of classes, C.

    Returns:
        float32 [], from −√(1 − 1/C) to 0.
    """
    import torch

    shares = torch.bincount(labels, minlength=classes).float() / len(labels)
    distance: Tensor = torch.linalg.vector_norm(shares - 1 / classes)
    return -distance


ENTRIES = {
    "diversity": RewardEntry(
        diversity,
        description="the image differs from the others of its prompt: mean cosine distance of CLIP embeddings",
        value_range="0 to 2",
        bounds=(0.0, 2.0),
        weights={"model": CLIP_L14},
        set_level=True,
        neural=True,
    ),
    "statistical_parity": RewardEntry(
        statistical_parity,
        description="the images of a prompt spread evenly over classes, by default skin tones, that CLIP tells apart",
        value_range="-1 to 0",
        bounds=(-1.0, 0.0),
        weights={"model": CLIP_L14},
        settings={"classes": list(FITZPATRICK), "template": "a photo of a person with {} skin"},
        check=_check_parity,
        set_level=True,
        neural=True,
    ),
}
