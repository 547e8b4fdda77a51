"""OCR: how well the text in the image is the text that the prompt asks for.

The reward is 1 − Levenshtein(wanted, read) / max(len(wanted), len(read)) of the folded texts. Flow-GRPO
(arXiv 2505.05470) divides by the length of the wanted text only, cuts at 0 and forgives whatever surrounds the
wanted text. With the longer of the two, an image that is covered with letters earns less than one that says what
was asked for, and no cut is needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    from torch import Tensor

_MODULES = ("rapidocr", "onnxruntime", "rapidfuzz")
_INSTALL = "pip install 'rlcm[ocr]'"

_QUOTED = re.compile(
    r'"([^"]+)"|“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»'
    # A single quote is an apostrophe unless it stands at the edge of a word on both ends.
    r"|(?<!\w)‘(.+?)’(?!\w)|(?<!\w)'(.+?)'(?!\w)"
)


def wanted_text(prompt: str) -> str:
    """Return what stands between quotes in a prompt, several quotations joined by a space.

    Quotes are "…", “…”, „…“, «…», ‘…’ and '…'.

    Raises:
        RewardError: If the prompt quotes nothing.
    """
    parts = [text.strip() for groups in _QUOTED.findall(prompt) for text in groups if text.strip()]
    if not parts:
        raise RewardError(
            f"reward 'ocr': the prompt {prompt!r} quotes no text to look for; write it as in "
            "'a sign that says \"hello\"', or --set reward_settings.ocr.text=TEXT"
        )
    return " ".join(parts)


def fold(text: str) -> str:
    """Remove what does not count: case, white space, and the width and form of letters (Unicode NFKC)."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).casefold())


def text_similarity(wanted: str, read: str) -> float:
    """Return 1 − Levenshtein distance / length of the longer text, both folded: 0 (nothing in common) to 1 (equal)."""
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(fold(wanted), fold(read)))


def ocr(text: str) -> RewardFn:
    """Make the reward: `text_similarity` of the wanted text and the one that RapidOCR reads in the image.

    Lines are read from top to bottom and joined. Upside-down text is not turned round. It runs on the CPU, one image
    at a time; the recogniser itself uses all cores.

    Args:
        text: The text wanted of every image; empty: the one that each prompt quotes (`wanted_text`).

    Raises:
        ConfigError: If `text` is not text.
        RewardError: If the extra is not installed. The reward itself raises it for a prompt that quotes nothing.
    """
    if not isinstance(text, str):
        raise ConfigError(f"reward 'ocr': text {text!r} must be a text, or empty for what each prompt quotes")
    wanted = (lambda prompt: text) if fold(text) else wanted_text
    return _Recogniser(_load_engine(), wanted)


class _Recogniser:
    """The reward function: the OCR engine and the text that a prompt wants."""

    def __init__(self, engine: Any, wanted: Callable[[str], str]) -> None:
        self._engine = engine
        self._wanted = wanted

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        import torch

        wanted = [self._wanted(prompt) for prompt in prompts]
        similarities = [text_similarity(text, self._read(image)) for text, image in zip(wanted, images, strict=True)]
        return torch.tensor(similarities, dtype=torch.float32)

    def _read(self, image: Tensor) -> str:
        """Return the text in an image, uint8 [3, H, W]."""
        # RapidOCR takes an array as OpenCV's: the channels are blue, green, red.
        pixels = image.flip(0).permute(1, 2, 0).contiguous().cpu().numpy()
        return " ".join(self._engine(pixels, use_cls=False).txts or ())


def _load_engine() -> Any:
    missing = _missing_extra({})
    if missing:
        raise RewardError(f"reward 'ocr': {missing}")
    try:
        from rapidocr import RapidOCR

        return RapidOCR(params={"Global.log_level": "critical"})
    except (ImportError, OSError, ValueError) as error:
        raise RewardError(f"reward 'ocr': RapidOCR does not start ({one_line(error)}); {_INSTALL} again") from error


def _missing_extra(settings: Mapping[str, Any]) -> str | None:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed; {_INSTALL}" if missing else None


def _engine_digest(settings: Mapping[str, Any]) -> str:
    """Return a digest of RapidOCR's version, which ships its models."""
    if missing := _missing_extra(settings):
        raise RewardError(f"reward 'ocr': {missing}")
    return hashlib.sha256(f"rapidocr {importlib.metadata.version('rapidocr')}".encode()).hexdigest()


ENTRIES = {
    "ocr": RewardEntry(
        ocr,
        description="the text that the prompt quotes appears in the image: 1 minus the normalised edit distance",
        value_range="0 to 1",
        bounds=(0.0, 1.0),
        needs="the extra rlcm[ocr] (RapidOCR with its models, 120 MB to download, 280 MB installed)",
        settings={"text": ""},
        revise=_engine_digest,
        obstacle=_missing_extra,
    ),
}
