"""A judge in this process: an image-text-to-text model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.tokenizers import check_vocabulary
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.judges import AskFn, Judge, JudgeSettings
from rlcm_cli.rewards.judges._images import to_pillow
from rlcm_cli.rewards.networks.loading import load_network, quiet_transformers
from rlcm_cli.rewards.networks.qwen_vl import is_qwen_vl, load_qwen_vl

if TYPE_CHECKING:
    from torch import Tensor

MODEL = Weights("llava-hf/llava-1.5-7b-hf", ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"), "14 GB")

_BATCH = 8


class LocalJudge:
    """Answers with greedy decoding, on the device of the images, in batches of at most 8.

    The processor must have a chat template and do without torchvision, as those of the Llava and Idefics3 families do
    (LLaVA 1.5, SmolVLM-256M-Instruct); processors that also read videos (SmolVLM2) need it.

    Raises:
        RewardError: If the model cannot be downloaded, loaded or used.
    """

    def __init__(self, settings: JudgeSettings, reward: str) -> None:
        folder = _find(settings, reward)
        self._processor = _load_processor(folder, reward)
        self._model = _load_model(folder, settings.dtype, reward)
        self._max_tokens = settings.max_tokens

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer one question per image; see `AskFn`."""
        self._model.to(images.device)
        answers: list[str] = []
        for start in range(0, len(questions), _BATCH):
            rows = slice(start, start + _BATCH)
            answers += self._answer(images[rows], questions[rows])
        return answers

    def _answer(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        import torch

        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        inputs = self._processor(
            text=[self._processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
            images=[[picture] for picture in to_pillow(images)],
            padding=True,
            return_tensors="pt",
        ).to(images.device, self._model.dtype)
        with torch.inference_mode(), quiet_transformers():
            tokens = self._model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self._max_tokens)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._processor.batch_decode(new, skip_special_tokens=True)]


class QwenJudge:
    """Answers with greedy decoding by a model of the Qwen-VL series, which is read without its processor.

    Raises:
        RewardError: If the model cannot be loaded.
    """

    def __init__(self, settings: JudgeSettings, reward: str) -> None:
        self._model = load_qwen_vl(_find(settings, reward), reward=reward, dtype=settings.dtype)
        self._max_tokens = settings.max_tokens

    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[str]:
        """Answer one question per image; see `AskFn`."""
        return self._model.write(images, questions, self._max_tokens)


def _make(settings: JudgeSettings, reward: str) -> AskFn:
    judge = QwenJudge if is_qwen_vl(_find(settings, reward)) else LocalJudge
    return judge(settings, reward)


def _find(settings: JudgeSettings, reward: str) -> Path:
    return MODEL.find(settings.model or MODEL.source, reward=reward)


def _load_processor(folder: Path, reward: str) -> Any:
    from transformers import AutoProcessor

    try:
        with quiet_transformers(), faults_of_libraries():
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ForeignError as error:
        if isinstance(error.__cause__, ImportError):
            raise RewardError(
                f"reward {reward!r}: the processor of the judge in {folder} needs a package that is not here "
                f"({error}); choose a judge whose processor does without, such as {MODEL.source}"
            ) from error
        raise _unusable(folder, reward, str(error)) from error
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "image_processor"):
        raise _unusable(folder, reward, "its processor has no chat template, or takes no images")
    try:
        check_vocabulary(processor.tokenizer)
    except ForeignError as error:
        raise _unusable(folder, reward, f"its tokenizer is {error}") from error
    # The answer of a padded row starts after the padding only if that is on the left.
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _load_model(folder: Path, dtype: str, reward: str) -> Any:
    from transformers import AutoModelForImageTextToText

    return load_network(
        AutoModelForImageTextToText, folder, reward=reward, what="an image-text-to-text model", dtype=dtype
    )


def _unusable(folder: Path, reward: str, fault: str) -> RewardError:
    return RewardError(
        f"reward {reward!r}: the judge in {folder} cannot be used as an image-text-to-text model of transformers "
        f"({fault}); set model to another folder or hub id"
    )


def _find_fault(settings: JudgeSettings) -> str | None:
    return None if settings.endpoint is None else "a local judge has no endpoint; leave it unset or choose a server"


JUDGE = Judge(
    "local",
    make=_make,
    find_fault=_find_fault,
    find_obstacle=lambda settings, reward: MODEL.find_obstacle(settings.model or MODEL.source, reward=reward),
    revise=lambda settings, reward: MODEL.digest(_find(settings, reward), reward=reward),
)
