"""HPSv3: which image people prefer for the prompt, by Qwen2-VL with a head on one token (arXiv 2508.03789).

As in MizzenAI/HPSv3. Its network was trained, and is published, with plain positions: every token, of the image or
of the text, has the next one. transformers' own forward pass of Qwen2-VL gives the tokens of an image their rows and
columns, and with that the numbers are others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.folders import check_configuration, read_json_object
from rlcm_cli.rewards.base.contract import RewardEntry, RewardFn, Settings
from rlcm_cli.rewards.base.weights import WeightFile, Weights
from rlcm_cli.rewards.networks.loading import DTYPES, fill_network, quiet_transformers
from rlcm_cli.rewards.networks.qwen_vl import BATCH, READER_FILES, QwenReader, check_tokens, check_type, load_reader
from rlcm_cli.rewards.networks.tensor_file import read_tensors
from rlcm_cli.wording import shorten

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = WeightFile("MizzenAI/HPSv3/HPSv3.safetensors", "16.6 GB")
QWEN2_VL = Weights("Qwen/Qwen2-VL-7B-Instruct", READER_FILES, "12 MB", words="the processor of")
"""The model that it was tuned from."""

REWARD_TOKEN = "<|Reward|>"  # noqa: S105
PIXELS = 256 * 28 * 28
"""Of every image, as near as whole tokens of 28 × 28 pixels come."""

INSTRUCTION = """
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score\
 to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the\
 best.\x20

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal\
 body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret,\
 with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g.,\
 hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition,\
 atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult\
 material. If such content is present, the image quality and satisfaction score should be the lowest possible.\x20

**Text Alignment:**\x20\x20
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) align with\
 the textual description. The subject should match the description in terms of number, appearance, and behavior.
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the image\
 adheres to this style.
- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image logically\
 fit the scenario described in the prompt. The environment should support and enhance the subject without\
 contradictions.
- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, accessories,\
 expressions, actions) are faithfully represented in the image. Minor deviations may be acceptable, but critical\
 attributes should be preserved.
- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the image. The\
 generated content should not introduce elements that conflict with or distort the original description.
Textual prompt - {prompt}



Please provide the overall ratings of this image: <|Reward|>

END
"""
"""What the model was trained with, word for word."""

_NAME = "hpsv3"
_HEAD = "rm_head."
_PLACES = (0, 3, 5)
"""Of the linear layers in the head: ReLUs and a dropout, which does nothing here, are between them."""
_UNUSED = "lm_head.weight"


def hpsv3(checkpoint: Path, processor: Path, dtype: str) -> RewardFn:
    """Make the reward: μ, the mean of the normal distribution that the model gives to the preference.

    Images are resized (bicubic, with antialias) to about 448 × 448 pixels, keeping their aspect. The head is computed
    in float32.

    Args:
        checkpoint: HPSv3.safetensors, with the names of any release of transformers.
        processor: Folder with the configuration, the tokenizer and the preprocessing of Qwen2-VL-7B-Instruct.
        dtype: Of the network's weights; `auto` is the one that they were saved in.

    Raises:
        RewardError: If the weights or the processor cannot be loaded, or are not of one architecture. The reward
            itself raises it for a prompt that holds a token of the model's own.
    """
    return load_model(checkpoint, processor, dtype)


@dataclass(frozen=True)
class Hpsv3Model:
    """The reward function: the network, its inputs and the head.

    Attributes:
        network: Qwen2VLModel, without a language head.
        reader: Makes its inputs.
        head: Pairs of weight and bias of the linear layers, float32.
    """

    network: Any
    reader: QwenReader
    head: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, object]]) -> Tensor:
        """Score as `RewardFn`."""
        import torch

        for prompt in prompts:
            if REWARD_TOKEN in prompt:
                raise RewardError(
                    f"reward {_NAME!r}: the prompt {shorten(prompt)!r} holds {REWARD_TOKEN}, where the model is read; "
                    "change the prompt"
                )
        self.network.to(images.device)
        texts = [INSTRUCTION.replace("{prompt}", prompt) for prompt in prompts]
        parts = [
            self._rate(self._read(images[start : start + BATCH], texts[start : start + BATCH]))[:, 0]
            for start in range(0, len(texts), BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, device=images.device)

    def _read(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return what the reward tokens have become, float32 [B, D]."""
        import torch

        inputs = self.reader.read(images, texts, pad="right")
        ids = inputs["input_ids"]
        seen = self.network.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        embedded = self.network.get_input_embeddings()(ids)
        holes = inputs["mm_token_type_ids"].bool().unsqueeze(-1)
        embedded = embedded.masked_scatter(holes.expand_as(embedded), torch.cat(list(seen)).to(embedded.dtype))
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, len(ids), -1)
        read = self.network.language_model(
            inputs_embeds=embedded,
            attention_mask=inputs["attention_mask"],
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        at_reward: Tensor = read[ids == self.reader.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)]
        return at_reward.float()

    def _rate(self, vectors: Tensor) -> Tensor:
        """Return μ and the logarithm of σ, float32 [B, 2]."""
        from torch.nn.functional import linear, relu

        for place, (weight, bias) in enumerate(self.head):
            vectors = relu(vectors) if place else vectors
            vectors = linear(vectors, weight.to(vectors.device), bias.to(vectors.device))
        return vectors


def load_model(checkpoint: Path, processor: Path, dtype: str) -> Hpsv3Model:
    """Load the published file into transformers' Qwen2-VL.

    Args:
        checkpoint: The file.
        processor: Holds `READER_FILES` of the model that it was tuned from.
        dtype: One of `DTYPES`.

    Raises:
        RewardError: If a file cannot be read, lacks a part, or is of another model.
    """
    import torch
    from transformers import Qwen2VLModel

    check_type(processor, ("qwen2_vl",), reward=_NAME)
    config = _read_config(processor)
    reader = load_reader(processor, reward=_NAME).with_pixels(PIXELS, PIXELS)
    reader.tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    tensors = read_tensors(checkpoint, reward=_NAME)
    body = {
        _rename(name): tensor for name, tensor in tensors.items() if name != _UNUSED and not name.startswith(_HEAD)
    }
    words = body.get("language_model.embed_tokens.weight")
    if words is None or words.ndim != 2:
        raise RewardError(
            f"reward {_NAME!r}: {checkpoint} is not a checkpoint of HPSv3: it has no embeddings of tokens; name "
            f"{CHECKPOINT.source.rpartition('/')[2]}"
        )
    head = _make_head(tensors, words.shape[1], checkpoint)
    check_tokens(reader, len(words), checkpoint)
    kind = words.dtype if dtype == "auto" else getattr(torch, dtype)
    config.text_config.vocab_size = len(words)
    network = fill_network(Qwen2VLModel, config, body, checkpoint, reward=_NAME, dtype=kind)
    return Hpsv3Model(network.eval().requires_grad_(False), reader, head)


def _rename(name: str) -> str:
    """From the names of either layout of Qwen2-VL's weights, before and since transformers 4.52, to Qwen2VLModel's."""
    for old, new in (("model.visual.", "visual."), ("model.language_model.", "language_model.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return re.sub(r"^model\.", "language_model.", name)


def _make_head(tensors: Mapping[str, Tensor], width: int, checkpoint: Path) -> list[tuple[Tensor, Tensor]]:
    names = sorted(name for name in tensors if name.startswith(_HEAD))
    if set(names) != {f"{_HEAD}{place}.{part}" for place in _PLACES for part in ("weight", "bias")}:
        raise RewardError(
            f"reward {_NAME!r}: {checkpoint} is not a checkpoint of HPSv3: its head holds "
            f"{', '.join(names) or 'nothing'}, not {_HEAD}0, {_HEAD}3 and {_HEAD}5; name "
            f"{CHECKPOINT.source.rpartition('/')[2]}"
        )
    layers = [
        (tensors[f"{_HEAD}{place}.weight"].float(), tensors[f"{_HEAD}{place}.bias"].float()) for place in _PLACES
    ]
    widths = [width, *(len(bias) for _, bias in layers[:-1]), 2]
    if any(
        tuple(weight.shape) != (after, before) or tuple(bias.shape) != (after,)
        for (weight, bias), (before, after) in zip(layers, pairwise(widths), strict=True)
    ):
        raise RewardError(
            f"reward {_NAME!r}: the head in {checkpoint} has shapes {[list(weight.shape) for weight, _ in layers]}, "
            f"which do not lead from {width} numbers to two; name the published file"
        )
    return layers


def _read_config(processor: Path) -> Any:
    from transformers import Qwen2VLConfig

    try:
        check_configuration(read_json_object(processor / "config.json"), processor / "config.json")
        with quiet_transformers(), faults_of_libraries():
            return Qwen2VLConfig.from_pretrained(processor, local_files_only=True)
    except ForeignError as error:
        raise RewardError(
            f"reward {_NAME!r}: {processor / 'config.json'} is not that of a Qwen2-VL ({error}); set processor to "
            f"{QWEN2_VL.source} or a copy of it"
        ) from error


def _check(settings: Settings) -> None:
    if settings["dtype"] not in DTYPES:
        raise ConfigError(f"reward {_NAME!r}: dtype {settings['dtype']!r} must be one of {', '.join(DTYPES)}")


ENTRIES = {
    _NAME: RewardEntry(
        hpsv3,
        description="which image people prefer for the prompt: HPSv3, a Qwen2-VL 7B",
        value_range="about -10 to 20, mostly 0 to 16",
        weights={"checkpoint": CHECKPOINT, "processor": QWEN2_VL},
        settings={"dtype": "bfloat16"},
        check=_check,
        neural=True,
        differentiable=True,
    ),
}
