"""Recognition: the log-probability that an image classifier gives to the subject that the prompt names."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.contract import RewardEntry, RewardFn
from rlcm_cli.rewards.network import load_network
from rlcm_cli.rewards.weights import digest_weights, find_weights, missing_weights, one_line

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED_JUDGE = "emoji-judge"
"""Name of the classifier inside the package, trained beside the embedded model."""

DEFAULT_FLOOR = math.log(1e-4)

_EMBEDDED_FOLDER = Path(__file__).parent / "emoji_judge"
_JUDGE_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_OTHER_LABEL = "other"
_BATCH = 64


def recognition(model: str, floor: float) -> RewardFn:
    """Make the reward: max(floor, log p(label named by the prompt | image)), in nats, in [floor, 0].

    The judge runs in float32 on the device of the images, in batches of at most 64. An image of another size
    than the judge's is resized to it (bilinear with antialias, whole image, no crop).

    Args:
        model: `emoji-judge`, or the folder or hub id of a transformers image classifier with its weights in
            safetensors and the keys size, image_mean and image_std in its preprocessor_config.json.
        floor: Below 0; a picture that the judge does not recognise at all costs no more than this, so
            that it cannot dominate the statistics of a batch.

    Raises:
        ConfigError: If `floor` is no finite number below 0, or `model` is no text.
        RewardError: If the judge cannot be had or is no image classifier. The reward itself raises it for a
            prompt that names none of the judge's labels.
    """
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not -math.inf < floor < 0:
        raise ConfigError(f"reward 'recognition': floor {floor!r} must be a finite number below 0")
    return _Judge(judge_folder(model), model, float(floor))


def judge_folder(model: str) -> Path:
    """Return the local folder of a judge, downloading it if `model` is the id of a hub repository.

    Raises:
        ConfigError: If `model` is no text.
        RewardError: If there is no such folder and the hub does not give one.
    """
    if model == EMBEDDED_JUDGE:
        return _EMBEDDED_FOLDER
    return find_weights(model, _JUDGE_FILES, reward="recognition", size="the size of the classifier")


def _judge_file(folder: Path, name: str, model: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise RewardError(
            f"judge {model!r}: {folder / name} cannot be read ({error.strerror}); the folder of a judge "
            f"holds {', '.join(_JUDGE_FILES)}"
        ) from error


class _Judge:
    """The reward function: a classifier, its preprocessing and its labels."""

    def __init__(self, folder: Path, name: str, floor: float) -> None:
        self._name = name
        self._floor = floor
        from transformers import AutoModelForImageClassification

        self._model = load_network(
            AutoModelForImageClassification, folder, reward="recognition", what="an image classifier"
        )
        self._size, self._mean, self._std = _load_preprocessing(folder, name)
        labels: dict[int, str] = self._model.config.id2label
        self._patterns: list[tuple[int, re.Pattern[str]]] = [
            (index, re.compile(rf"(?<!\w){re.escape(synonym)}(?!\w)", re.IGNORECASE))
            for index, label in labels.items()
            if label.lower() != _OTHER_LABEL
            # ImageNet's labels are lists of synonyms: "tabby, tabby cat".
            for synonym in (part.strip() for part in label.split(","))
            if synonym
        ]
        self._known_labels = list(labels.values())
        self._label_index = functools.cache(self._find_label_index)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        labels = [self._label_index(prompt) for prompt in prompts]
        targets = torch.tensor(labels, dtype=torch.int64, device=images.device)
        self._model.to(images.device)
        logits = torch.cat(
            [self._model(pixel_values=self._pixels(part)).logits for part in torch.split(images, _BATCH)]
        )
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        return log_probs.gather(1, targets[:, None]).squeeze(1).clamp(min=self._floor)

    def _pixels(self, images: Tensor) -> Tensor:
        from torch.nn.functional import interpolate

        pixels = images.float() / 255
        if tuple(pixels.shape[2:]) != self._size:
            pixels = interpolate(pixels, size=self._size, mode="bilinear", antialias=True)
        return (pixels - pixels.new_tensor(self._mean)[:, None, None]) / pixels.new_tensor(self._std)[:, None, None]

    def _find_label_index(self, prompt: str) -> int:
        """Return the longest label that stands in the prompt as whole words; the earliest of equally long."""
        found = [
            (match.end() - match.start(), -match.start(), index)
            for index, pattern in self._patterns
            if (match := pattern.search(prompt))
        ]
        if not found:
            known = ", ".join(self._known_labels[:5])
            raise RewardError(
                f"reward 'recognition': the prompt {prompt!r} names none of the labels of judge "
                f"{self._name!r} ({known}, …); use prompts that do, or set model to a judge that knows it"
            )
        _, _, index = max(found)
        return index


def _load_preprocessing(folder: Path, name: str) -> tuple[tuple[int, int], list[float], list[float]]:
    """Return the judge's (height, width) in pixels and the mean and std of its normalised channels."""
    content = _judge_file(folder, "preprocessor_config.json", name)
    try:
        config = json.loads(content)
        size = config["size"]
        edge = size.get("shortest_edge")
        height, width = int(size.get("height", edge)), int(size.get("width", edge))
        mean, std = [[float(value) for value in config[key]] for key in ("image_mean", "image_std")]
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("image_mean and image_std need three values")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"judge {name!r}: {folder / 'preprocessor_config.json'} does not give size, image_mean and "
            f"image_std ({type(error).__name__}: {one_line(error)}); mend it or name another judge"
        ) from error
    return (height, width), mean, std


ENTRIES = {
    "recognition": RewardEntry(
        recognition,
        description="log-probability that an image classifier gives to the label that the prompt names",
        value_range="floor to 0, nats",
        bounds=(-math.inf, 0.0),
        needs="nothing (embedded judge), or a transformers image classifier: a folder or hub id",
        defaults={"model": EMBEDDED_JUDGE, "floor": DEFAULT_FLOOR},
        neural=True,
        differentiable=True,
        revise=lambda settings: digest_weights(judge_folder(settings["model"]), _JUDGE_FILES, reward="recognition"),
        obstacle=lambda settings: (
            None
            if settings["model"] == EMBEDDED_JUDGE
            else missing_weights(
                settings["model"], _JUDGE_FILES, reward="recognition", size="the size of the classifier"
            )
        ),
    ),
}
