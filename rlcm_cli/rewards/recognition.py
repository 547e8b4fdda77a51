"""Recognition: the log-probability that an image classifier gives to the subject that the prompt names."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.contract import RewardFn

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
    if not isinstance(model, str):
        raise ConfigError(f"reward 'recognition': model {model!r} must be a folder or a hub id")
    if model == EMBEDDED_JUDGE:
        if not _EMBEDDED_FOLDER.is_dir():
            raise RewardError(
                f"the judge {model!r} is missing from this installation ({_EMBEDDED_FOLDER}); "
                "install rlcm again, or set the reward's model to a classifier folder or hub id"
            )
        return _EMBEDDED_FOLDER
    if Path(model).is_dir():
        return Path(model)

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_JUDGE_FILES)))
    except (OSError, ValueError) as error:
        raise RewardError(
            f"judge {model!r} is no folder here and the hub does not give it ({_one_line(error)}); "
            f"check the path or the network, or use the embedded {EMBEDDED_JUDGE!r}"
        ) from error


def judge_digest(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) over the weights, the labels and the preprocessing of the judge in `settings`.

    It stands for the judge in a reward's digest, in place of the path, which differs between machines.

    Raises:
        ConfigError, RewardError: As `judge_folder`, and if one of the judge's files is missing.
    """
    folder = judge_folder(settings["model"])
    digest = hashlib.sha256()
    for name in _JUDGE_FILES:
        content = _judge_file(folder, name, settings["model"])
        if name.endswith(".json"):
            # A checkout on Windows may have changed the line ends.
            content = content.replace(b"\r\n", b"\n")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


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
        self._model = _load_classifier(folder, name)
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
        with torch.no_grad():
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


def _load_classifier(folder: Path, name: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    try:
        with _quiet():
            model, report = AutoModelForImageClassification.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RewardError(
            f"judge {name!r} cannot be loaded as a transformers image classifier from {folder} "
            f"({_one_line(error)}); name another folder or hub id"
        ) from error
    # transformers fills a missing head with random numbers and only logs it.
    if report["missing_keys"]:
        raise RewardError(
            f"judge {name!r}: the weights in {folder} lack {', '.join(sorted(report['missing_keys']))}, so "
            "it is no trained classifier; name another folder or hub id"
        )
    return model.eval().requires_grad_(False)


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
            f"image_std ({type(error).__name__}: {_one_line(error)}); mend it or name another judge"
        ) from error
    return (height, width), mean, std


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and loading report off the terminal: only the command line prints."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
