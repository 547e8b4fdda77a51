"""Composition: the objects that the prompt names are in the image, and where the prompt puts them.

A zero-shot detector, OWLv2 (arXiv 2306.09683), looks for them; `scenes` reads the prompt and does the sums. The mean
confidence of the named objects is the composition reward of Pinterest (arXiv 2401.12244); the relations are judged
as in T2I-CompBench (arXiv 2307.06350).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards._scenes import Box, Detection, Scene, parse_scene, score_scene
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.networks.clip_model import CLIP_FILES, load_tokenizer
from rlcm_cli.rewards.networks.loading import load_network
from rlcm_cli.rewards.networks.preprocessing import read_preprocessing

if TYPE_CHECKING:
    from torch import Tensor

DETECTOR = Weights("google/owlv2-base-patch16-ensemble", CLIP_FILES, "620 MB", words="the detector")

_QUERY = "a photo of a {}"
_BATCH = 8
"""The detector looks at 3,600 patches per image."""


def composition(model: Path, threshold: float, objects: Sequence[str]) -> RewardFn:
    """Make the reward: `scenes.score_scene` of the prompt's scene and the boxes found in the image, in [0, 1].

    The detector runs in float32 on the device of the images, in batches of at most 8. An image that is not square is
    padded with grey at the right or the bottom, then resized (bilinear). A box belongs to the name that it fits
    best, so that one animal is not a cat and a dog.

    Args:
        model: Folder of an OWLv2 detector of transformers.
        threshold: In [0, 1); a box of less confidence is not there.
        objects: Names to look for in the prompts; empty: every noun phrase names an object (grammar in `scenes`).

    Raises:
        RewardError: If the detector cannot be loaded or is something else. The reward itself raises it for a prompt
            that names no object.
    """
    return _Composition(_Detector(model), float(threshold), tuple(name.strip() for name in objects))


def _check(settings: Settings) -> None:
    threshold, objects = settings["threshold"], settings["objects"]
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < 1:
        raise ConfigError(f"reward 'composition': threshold {threshold!r} must be a number from 0 to below 1")
    if not isinstance(objects, list | tuple) or not all(isinstance(name, str) and name.strip() for name in objects):
        raise ConfigError(f"reward 'composition': objects {objects!r} must be a list of names, such as ['cat', 'dog']")


class _Composition:
    """The reward function: a detector, and the names to look for."""

    def __init__(self, detector: _Detector, threshold: float, vocabulary: tuple[str, ...]) -> None:
        self._detector = detector
        self._threshold = threshold
        self._vocabulary = vocabulary
        self._scene = functools.cache(self._read_scene)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        scenes = [self._scene(prompt) for prompt in prompts]
        rewards: list[float] = []
        for start in range(0, len(images), _BATCH):
            part = scenes[start : start + _BATCH]
            found = self._detector(images[start : start + _BATCH], [scene.names for scene in part], self._threshold)
            rewards += [score_scene(scene, boxes) for scene, boxes in zip(part, found, strict=True)]
        return torch.tensor(rewards, dtype=torch.float32)

    def _read_scene(self, prompt: str) -> Scene:
        scene = parse_scene(prompt, self._vocabulary)
        if not scene.objects:
            known = f" of {', '.join(self._vocabulary[:5])}" if self._vocabulary else ""
            raise RewardError(
                f"reward 'composition': the prompt {prompt!r} names no object{known}; use prompts that do, such as "
                "'a cat left of a dog', or --set reward_settings.composition.objects=LIST"
            )
        return scene


class _Detector:
    """OWLv2 with its tokenizer and preprocessing."""

    def __init__(self, folder: Path) -> None:
        self._model = _load(folder)
        self._tokenizer = load_tokenizer(folder, reward="composition")
        self._preprocess = read_preprocessing(folder, reward="composition")

    def __call__(
        self, images: Tensor, names: Sequence[Sequence[str]], threshold: float
    ) -> list[dict[str, list[Detection]]]:
        """Look for names in images.

        Args:
            images: uint8 [B, 3, H, W], RGB.
            names: B sequences of one or more names.
            threshold: Least confidence of a box.

        Returns:
            B mappings from a name to its boxes, in units of the image's longer side.
        """
        import torch

        self._model.to(images.device)
        with torch.inference_mode():
            output = self._model(pixel_values=self._pixels(images), **self._queries(names, images.device))
            # The last axis has the queries, those of a shorter list padded.
            confidences, centred = output.logits.float().sigmoid().cpu(), output.pred_boxes.float().cpu()
        return [
            _boxes_of(known, confidences[row, :, : len(known)], centred[row], threshold)
            for row, known in enumerate(names)
        ]

    def _pixels(self, images: Tensor) -> Tensor:
        from torch.nn.functional import pad

        height, width = images.shape[2:]
        edge = max(height, width)
        # Grey, as in OWLv2's training; transformers 5 pads with black.
        return self._preprocess(pad(images, (0, edge - width, 0, edge - height), value=128))

    def _queries(self, names: Sequence[Sequence[str]], device: Any) -> dict[str, Tensor]:
        most = max(len(known) for known in names)
        texts = [_QUERY.format(name) for known in names for name in [*known, *[known[0]] * (most - len(known))]]
        encoded = self._tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return {key: encoded[key].to(device) for key in ("input_ids", "attention_mask")}


def _boxes_of(
    names: Sequence[str], confidences: Tensor, centred: Tensor, threshold: float
) -> dict[str, list[Detection]]:
    """Return the boxes of each name.

    Args:
        names: Q names.
        confidences: float32 [N, Q] of each box for each name.
        centred: float32 [N, 4]: x and y of the centre, width, height.
        threshold: Least confidence.
    """
    best, owner = confidences.max(dim=1)
    found: dict[str, list[Detection]] = {name: [] for name in names}
    for row in (best >= threshold).nonzero().flatten().tolist():
        x, y, width, height = centred[row].tolist()
        box: Box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found[names[int(owner[row])]].append(Detection(best[row].item(), box))
    return found


def _load(folder: Path) -> Any:
    from transformers import AutoModelForZeroShotObjectDetection

    model = load_network(
        AutoModelForZeroShotObjectDetection, folder, reward="composition", what="a zero-shot detector"
    )
    if model.config.model_type != "owlv2":
        raise RewardError(
            f"reward 'composition': {folder} holds a model of type {model.config.model_type}, not owlv2; name "
            f"{DETECTOR.source} or another OWLv2 detector"
        )
    return model


ENTRIES = {
    "composition": RewardEntry(
        composition,
        description="the objects that the prompt names are in the image, and where it says they are",
        value_range="0 to 1",
        bounds=(0.0, 1.0),
        weights={"model": DETECTOR},
        settings={"threshold": 0.1, "objects": []},
        check=_check,
        neural=True,
    ),
}
