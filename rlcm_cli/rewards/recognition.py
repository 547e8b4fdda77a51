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
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.networks.loading import load_network
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor

JUDGE = Weights(
    "emoji-judge", ("config.json", "preprocessor_config.json", "model.safetensors"), embedded="emoji-judge"
)
"""The classifier inside the package, trained with the embedded model."""

DEFAULT_FLOOR = math.log(1e-4)

_OTHER_LABEL = "other"
_BATCH = 64


def recognition(model: Path, floor: float) -> RewardFn:
    """Make the reward: max(floor, log p(label named by the prompt | image)), in nats, in [floor, 0].

    The judge runs in float32 on the device of the images, in batches of at most 64. An image of another size
    than the judge's is resized to it (bilinear with antialias, whole image, no crop).

    Args:
        model: Folder of a transformers image classifier with its weights in safetensors and the keys size,
            image_mean and image_std in its preprocessor_config.json.
        floor: Below 0; a picture that the judge does not recognise at all costs no more than this, so
            that it cannot dominate the statistics of a batch.

    Raises:
        RewardError: If the judge cannot be loaded or is not an image classifier. The reward itself raises it for a
            prompt that names none of the judge's labels.
    """
    return _Classifier(model, float(floor))


def _check(settings: Settings) -> None:
    floor = settings["floor"]
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not -math.inf < floor < 0:
        raise ConfigError(f"reward 'recognition': floor {floor!r} must be a finite number below 0")


class _Classifier:
    """The reward function: a classifier, its preprocessing and its labels."""

    def __init__(self, folder: Path, floor: float) -> None:
        self._folder = folder
        self._floor = floor
        from transformers import AutoModelForImageClassification

        self._model = load_network(
            AutoModelForImageClassification, folder, reward="recognition", what="an image classifier"
        )
        self._size, self._mean, self._std = _load_preprocessing(folder)
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
                f"reward 'recognition': the prompt {prompt!r} names none of the labels of the judge in "
                f"{self._folder} ({known}, …); use prompts that do, or set model to a judge that knows it"
            )
        _, _, index = max(found)
        return index


def _load_preprocessing(folder: Path) -> tuple[tuple[int, int], list[float], list[float]]:
    """Return the judge's (height, width) in pixels and the mean and std of its normalised channels."""
    path = folder / "preprocessor_config.json"
    try:
        config = json.loads(path.read_bytes())
        size = config["size"]
        edge = size.get("shortest_edge")
        height, width = int(size.get("height", edge)), int(size.get("width", edge))
        mean, std = [[float(value) for value in config[key]] for key in ("image_mean", "image_std")]
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("image_mean and image_std need three values")
    except OSError as error:
        raise RewardError(
            f"reward 'recognition': {path} cannot be read ({error.strerror}); the folder of a judge holds "
            f"{', '.join(JUDGE.files)}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"reward 'recognition': {path} does not give size, image_mean and image_std ({type(error).__name__}: "
            f"{one_line(error)}); fix it, or name another judge"
        ) from error
    return (height, width), mean, std


ENTRIES = {
    "recognition": RewardEntry(
        recognition,
        description="log-probability that an image classifier gives to the label that the prompt names",
        value_range="floor to 0, nats",
        bounds=(-math.inf, 0.0),
        weights={"model": JUDGE},
        settings={"floor": DEFAULT_FLOOR},
        check=_check,
        needs="nothing (the embedded judge), or another image classifier of transformers: a folder or hub id",
        neural=True,
        differentiable=True,
    ),
}
