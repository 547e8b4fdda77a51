"""Vision-language models of the Qwen-VL series: how likely an answer to a question about an image is, or the answer.

They are loaded with transformers. Their processors there need torchvision, because they read videos, too; this reads
one image and one text, without it, on any device, and keeps the gradient of the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlcm_cli.errors import RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries, first_lines
from rlcm_cli.foreign.folders import read_json_object
from rlcm_cli.rewards.networks.clip_model import TOKENIZER_FILES, load_tokenizer
from rlcm_cli.rewards.networks.loading import load_network, quiet_transformers
from rlcm_cli.rewards.networks.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from rlcm_cli.wording import one_line, shorten

if TYPE_CHECKING:
    from torch import Tensor

TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""What config.json calls the models that are read here."""
READER_FILES = ("config.json", "preprocessor_config.json", "chat_template*", *TOKENIZER_FILES)
"""What is read of a hub repository besides the weights."""
MODEL_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors")
"""What is read of a hub repository with the weights."""

BATCH = 8
"""Images that go through a network together."""


@dataclass(frozen=True)
class Patches:
    """Resizes images to whole patches and cuts them up, as transformers' Qwen2VLImageProcessor does it.

    Attributes:
        edge: Of a patch, in pixels.
        merge: Patches along each side of what becomes one token.
        frames: Times that the image stands in a patch: the towers read videos.
        least: Fewest pixels of a resized image.
        most: Most pixels of a resized image.
        mean: Of each channel, of values in [0, 1].
        std: Of each channel, of values in [0, 1].
    """

    edge: int
    merge: int
    frames: int
    least: int
    most: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the patches of a column and of a row, of an image of `height` × `width` pixels.

        Raises:
            ValueError: If one side is more than 200 times the other.
        """
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        high, wide = smart_resize(height, width, self.edge * self.merge, self.least, self.most)
        return high // self.edge, wide // self.edge

    def __call__(self, images: Tensor) -> Tensor:
        """Cut up a batch.

        Args:
            images: uint8 [B, 3, H, W], RGB, or float32 of 0 … 255, whose gradient is kept.

        Returns:
            float32 [B · rows · columns of `grid`, 3 · frames · edge · edge], normalised. The patches of one token
            stand together.
        """
        rows, columns = self.grid(*images.shape[2:])
        resize = Preprocessing((rows * self.edge, columns * self.edge), None, self.mean, self.std)
        shape = (
            len(images),
            3,
            rows // self.merge,
            self.merge,
            self.edge,
            columns // self.merge,
            self.merge,
            self.edge,
        )
        # (B, row and column of tokens, row and column of patches, channel, frame, y, x)
        cut = resize(images).reshape(shape).permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        return cut.expand(-1, -1, -1, -1, -1, -1, self.frames, -1, -1).reshape(len(images) * rows * columns, -1)


@dataclass(frozen=True)
class QwenReader:
    """Turns images and texts into what a network of the series takes.

    Attributes:
        tokenizer: The model's.
        template: The model's chat template.
        image_token: Stands in a text for one token of an image.
        patches: The model's preprocessing.
        reward: Name of the reward, for error messages.
    """

    tokenizer: Any
    template: str
    image_token: str
    patches: Patches
    reward: str

    def with_pixels(self, least: int, most: int) -> QwenReader:
        """Return a reader that resizes images to between `least` and `most` pixels."""
        return replace(self, patches=replace(self.patches, least=least, most=most))

    def read(self, images: Tensor, texts: Sequence[str], *, pad: Literal["left", "right"]) -> dict[str, Tensor]:
        """Make a chat of one image and one text for each row, which waits for the model's answer.

        Args:
            images: uint8 [B, 3, H, W], RGB, or float32 of 0 … 255, whose gradient is kept.
            texts: B texts.
            pad: Side on which shorter texts are padded.

        Returns:
            Arguments of the network's `forward`, on the device of the images.

        Raises:
            RewardError: If a text holds the token that stands for an image, or the images are too narrow.
        """
        import torch

        rows, columns = self._measure(images)
        count = rows * columns // self.patches.merge**2
        tokens = self.tokenizer(
            [self._write_chat(text, count) for text in texts], padding=True, padding_side=pad, return_tensors="pt"
        ).to(images.device)
        ids = tokens["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": tokens["attention_mask"],
            "mm_token_type_ids": (ids == self.tokenizer.convert_tokens_to_ids(self.image_token)).int(),
            "pixel_values": self.patches(images),
            "image_grid_thw": torch.tensor([[1, rows, columns]] * len(texts), device=images.device),
        }

    def _measure(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[2:]
        try:
            return self.patches.grid(height, width)
        except ValueError as error:
            raise RewardError(
                f"reward {self.reward!r}: images of {height} × {width} are too narrow for the model "
                f"({one_line(error)})"
            ) from error

    def _write_chat(self, text: str, count: int) -> str:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        written: str = self.tokenizer.apply_chat_template(
            chat, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        if written.count(self.image_token) != 1:
            raise RewardError(
                f"reward {self.reward!r}: the prompt in {shorten(text)!r} holds {self.image_token}, which stands for "
                "an image to the model; change the prompt"
            )
        return written.replace(self.image_token, self.image_token * count)


@dataclass(frozen=True)
class QwenVl:
    """A frozen model that answers questions about images.

    Attributes:
        network: Of transformers, with its language head.
        reader: Makes its inputs.
    """

    network: Any
    reader: QwenReader

    def with_tokens(self, fewest: int, most: int) -> QwenVl:
        """Return a model that sees every image as between `fewest` and `most` tokens."""
        area = (self.reader.patches.edge * self.reader.patches.merge) ** 2
        return replace(self, reader=self.reader.with_pixels(fewest * area, most * area))

    def log_probs(self, images: Tensor, texts: Sequence[str], answers: Sequence[Sequence[str]]) -> Tensor:
        """Return how likely the model is to begin its answer with one of several, as greedy decoding sees it.

        Only the first token of each answer counts, as in the published VQAScore and Soft-TIFA; the repetition penalty
        of the model's generation_config.json, which they take over with `generate`, is applied, too.

        Args:
            images: uint8 [B, 3, H, W], RGB, or float32 of 0 … 255, whose gradient is kept.
            texts: B questions.
            answers: For each, the answers that are looked for, each one text.

        Returns:
            Log-probabilities, float32 [B], at most 0.

        Raises:
            RewardError: As `QwenReader.read`.
        """
        import torch

        self.network.to(images.device)
        parts = []
        for start in range(0, len(texts), BATCH):
            rows = slice(start, start + BATCH)
            inputs = self.reader.read(images[rows], texts[rows], pad="left")
            logits = self.network(**inputs, logits_to_keep=1).logits[:, -1].float()
            scores = torch.log_softmax(self._penalise(logits, inputs), dim=-1)
            parts += [
                torch.logsumexp(scores[row, self._first_tokens(wanted)], dim=0)
                for row, wanted in enumerate(answers[rows])
            ]
        return torch.stack(parts) if parts else torch.zeros(0, device=images.device)

    def write(self, images: Tensor, texts: Sequence[str], most: int) -> list[str]:
        """Return the model's answers by greedy decoding, without white space around them.

        Args:
            images: uint8 [B, 3, H, W], RGB.
            texts: B questions.
            most: Longest answer in tokens.

        Raises:
            RewardError: As `QwenReader.read`.
        """
        import torch

        self.network.to(images.device)
        answers: list[str] = []
        for start in range(0, len(texts), BATCH):
            rows = slice(start, start + BATCH)
            inputs = self.reader.read(images[rows], texts[rows], pad="left")
            with torch.inference_mode(), quiet_transformers():
                tokens = self.network.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=most)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self.reader.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers

    def _penalise(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Apply the repetition penalty (arXiv 1909.05858, section 4.1) to the tokens of each row's own text."""
        penalty = getattr(self.network.generation_config, "repetition_penalty", None) or 1.0
        if penalty == 1.0:
            return logits
        times = logits.new_zeros(logits.shape).scatter_add(
            1, inputs["input_ids"], inputs["attention_mask"].to(logits.dtype)
        )
        return logits.where(times == 0, (logits * penalty).where(logits < 0, logits / penalty))

    def _first_tokens(self, answers: Sequence[str]) -> list[int]:
        encode = self.reader.tokenizer.encode
        return sorted({encode(answer, add_special_tokens=False)[0] for answer in answers})


def is_qwen_vl(folder: Path) -> bool:
    """Return whether a folder says that it holds a model of the series."""
    try:
        return read_json_object(folder / "config.json").get("model_type") in TYPES
    except ForeignError:
        return False


def load_qwen_vl(folder: Path, *, reward: str, dtype: str) -> QwenVl:
    """Load a model of the hub's layout.

    Args:
        folder: Holds `MODEL_FILES`.
        reward: Name of the reward, for error messages.
        dtype: Of the weights: one of `loading.DTYPES`, `auto` being the one that they were saved in.

    Raises:
        RewardError: If it cannot be loaded whole, or is of another kind.
    """
    from transformers import AutoModelForImageTextToText

    check_type(folder, TYPES, reward=reward)
    reader = load_reader(folder, reward=reward)
    network = load_network(
        AutoModelForImageTextToText, folder, reward=reward, what="an image-text-to-text model", dtype=dtype
    )
    check_tokens(reader, network.get_input_embeddings().weight.shape[0], folder)
    return QwenVl(network, reader)


def load_reader(folder: Path, *, reward: str) -> QwenReader:
    """Load what makes a network's inputs.

    Args:
        folder: Holds `READER_FILES`.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If a file is missing or describes something else.
    """
    from jinja2 import TemplateError

    tokenizer = load_tokenizer(folder, reward=reward)
    try:
        config = read_json_object(folder / "config.json")
        image_token = tokenizer.convert_ids_to_tokens(int(config["image_token_id"]))
        template = _read_template(folder) or tokenizer.chat_template
        patches = _read_patches(folder)
    except ForeignError as error:
        raise _incomplete(folder, reward, str(error)) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _incomplete(folder, reward, f"{type(error).__name__}: {one_line(error)}") from error
    if not isinstance(template, str) or not template:
        raise _incomplete(folder, reward, "there is no chat template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    reader = QwenReader(tokenizer, template, image_token, patches, reward)
    try:
        with faults_of_libraries():
            reader._write_chat("a cat", 1)
    except (ForeignError, RewardError, TemplateError) as error:
        raise _incomplete(
            folder, reward, f"its chat template does not write one image: {first_lines(error)}"
        ) from None
    return reader


def check_type(folder: Path, types: Sequence[str], *, reward: str) -> None:
    """Raise `RewardError` unless a folder's config.json is that of a model of one of the types."""
    try:
        found = read_json_object(folder / "config.json").get("model_type")
    except ForeignError as error:
        raise _incomplete(folder, reward, str(error)) from error
    if found not in types:
        raise RewardError(
            f"reward {reward!r}: {folder} holds a model of type {found}, and this reward reads {', '.join(types)}; "
            "name such a model"
        )


def check_tokens(reader: QwenReader, known: int, source: Path) -> None:
    """Raise `RewardError` where a reader's tokenizer has more tokens than a network knows."""
    if len(reader.tokenizer) > known:
        raise RewardError(
            f"reward {reader.reward!r}: the tokenizer has {len(reader.tokenizer)} tokens, and the model in {source} "
            f"knows {known}: they do not belong together; name the published ones"
        )


def _read_template(folder: Path) -> str | None:
    """Read the chat template where it is a file of its own, as older and newer repositories have it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return str(read_json_object(folder / "chat_template.json")["chat_template"])
    return None


def _read_patches(folder: Path) -> Patches:
    values = _read_preprocessing(folder)
    size = values.get("size") or {}
    least = values.get("min_pixels") or size.get("shortest_edge") or size["min_pixels"]
    most = values.get("max_pixels") or size.get("longest_edge") or size["max_pixels"]
    patches = Patches(
        edge=int(values["patch_size"]),
        merge=int(values["merge_size"]),
        frames=int(values["temporal_patch_size"]),
        least=int(least),
        most=int(most),
        mean=tuple(map(float, values["image_mean"])),
        std=tuple(map(float, values["image_std"])),
    )
    if min(patches.edge, patches.merge, patches.frames, patches.least) < 1 or patches.most < patches.least:
        raise ValueError("its preprocessing has an impossible size")
    if len(patches.mean) != 3 or len(patches.std) != 3 or min(patches.std) <= 0:
        raise ValueError("image_mean and image_std need three values")
    return patches


def _read_preprocessing(folder: Path) -> Mapping[str, Any]:
    """Read what describes the image processor, which transformers 5 saves within that of the processor."""
    whole = folder / "processor_config.json"
    if whole.is_file() and not (folder / "preprocessor_config.json").is_file():
        return dict(read_json_object(whole)["image_processor"])
    return read_json_object(folder / "preprocessor_config.json")


def _incomplete(folder: Path, reward: str, fault: str) -> RewardError:
    return RewardError(
        f"reward {reward!r}: {folder} cannot be read as a model of the Qwen-VL series ({fault}); it needs the files "
        "of the hub repository as they are"
    )
