"""A contrastive image-text model of transformers: images and prompts become unit vectors that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.tokenizers import check_vocabulary
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.networks.loading import load_network, quiet_transformers
from rlcm_cli.rewards.networks.preprocessing import Preprocessing, read_preprocessing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHT_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens*")
PROCESSOR_FILES = ("preprocessor_config.json", *TOKENIZER_FILES)
CLIP_FILES = (*WEIGHT_FILES, *PROCESSOR_FILES)
"""What is read of a hub repository; tokenizers come as one file or as several."""

CLIP_L14 = Weights(
    "openai/clip-vit-large-patch14", CLIP_FILES, "1.7 GB", words="the CLIP model", embedded="emoji-clip"
)
"""The CLIP model of most rewards; `emoji-clip`, inside the package, was trained with the embedded image model."""

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))

IMAGE_BATCH = 64
"""Images that go through a tower together."""


@dataclass(frozen=True)
class ClipModel:
    """A frozen model in float32 with its preprocessing and its tokenizer.

    Attributes:
        network: Has `get_image_features` and `get_text_features`.
        preprocess: From uint8 images to its pixels.
        tokenizer: Its tokenizer.
        context: Tokens that a prompt is cut to.
    """

    network: Any
    preprocess: Preprocessing
    tokenizer: Any
    context: int

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images, at most `IMAGE_BATCH` at once, on their device.

        Args:
            images: uint8 [B, 3, H, W], RGB, or float32 of 0 … 255, whose gradient is kept.

        Returns:
            Unit vectors, float32 [B, D].
        """
        import torch
        from torch.nn.functional import normalize

        self.network.to(images.device)
        parts = [
            self.network.get_image_features(pixel_values=self.preprocess(part)).pooler_output
            for part in torch.split(images, IMAGE_BATCH)
        ]
        return normalize(torch.cat(parts), dim=-1)

    def embed_texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
        """Embed texts; what is longer than the context is cut off.

        Args:
            texts: B texts.
            device: Where to compute.

        Returns:
            Unit vectors, float32 [B, D].
        """
        import torch
        from torch.nn.functional import normalize

        self.network.to(device)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        # Padded to the context whatever the other texts are: the same text has the same vector in any batch.
        tokens = self.tokenizer(
            list(rows), padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        ).to(device)
        with torch.no_grad():
            vectors = normalize(self.network.get_text_features(**tokens).pooler_output, dim=-1)
            return vectors[[rows[text] for text in texts]]

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compare each image with its prompt.

        Args:
            images: As for `embed_images`.
            prompts: B prompts.

        Returns:
            Cosines, float32 [B], from −1 to 1.
        """
        return (self.embed_images(images) * self.embed_texts(prompts, images.device)).sum(-1)


def load_clip(folder: Path, *, reward: str, processor: Path | None = None) -> ClipModel:
    """Load a model of the hub's layout.

    Args:
        folder: Holds `WEIGHT_FILES`, and `PROCESSOR_FILES` unless they are elsewhere.
        reward: Name of the reward, for error messages.
        processor: Holds `PROCESSOR_FILES`.

    Raises:
        RewardError: If it cannot be loaded whole, or is of another kind.
    """
    from transformers import AutoModel

    network = load_network(AutoModel, folder, reward=reward, what="a contrastive image-text model")
    if not (hasattr(network, "get_image_features") and hasattr(network, "get_text_features")):
        raise RewardError(
            f"reward {reward!r}: {folder} holds a {type(network).__name__}, which does not embed both images and "
            "texts; name a CLIP model"
        )
    return assemble_clip(network, processor or folder, reward=reward)


def assemble_clip(network: Any, processor: Path, *, reward: str) -> ClipModel:
    """Put a loaded network together with the preprocessing and the tokenizer of a folder.

    Args:
        network: A model with both towers and its configuration.
        processor: Holds `PROCESSOR_FILES`.
        reward: Name of the reward, for error messages.

    Raises:
        RewardError: If the preprocessing or the tokenizer cannot be loaded, or makes pixels of another size or
            more tokens than the network knows.
    """
    preprocess = read_preprocessing(processor, reward=reward)
    taken = network.config.vision_config.image_size
    if preprocess.size != (taken, taken):
        raise RewardError(
            f"reward {reward!r}: {processor / 'preprocessor_config.json'} makes images of "
            f"{preprocess.size[0]} × {preprocess.size[1]}, and the model takes {taken} × {taken}; name the processor "
            "that belongs to the model"
        )
    tokenizer = load_tokenizer(processor, reward=reward)
    known = network.config.text_config.vocab_size
    if len(tokenizer) > known:
        raise RewardError(
            f"reward {reward!r}: the tokenizer in {processor} has {len(tokenizer)} tokens, and the model knows "
            f"{known}; name the processor that belongs to the model"
        )
    context = min(network.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    return ClipModel(network.eval().requires_grad_(False), preprocess, tokenizer, context)


def load_tokenizer(folder: Path, *, reward: str) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        RewardError: If there is none.
    """
    from transformers import AutoTokenizer

    # Without them transformers makes up a tokenizer that knows no word.
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise RewardError(
            f"reward {reward!r}: {folder} holds no tokenizer; it needs {_either(_TOKENIZERS)} of the model's hub "
            "repository"
        )
    try:
        with quiet_transformers(), faults_of_libraries():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            check_vocabulary(tokenizer)
    except ForeignError as error:
        raise RewardError(
            f"reward {reward!r}: the tokenizer in {folder} cannot be loaded ({error}); it needs "
            f"{_either(_TOKENIZERS)} of the model's hub repository"
        ) from error
    return tokenizer


def _either(choices: Sequence[Sequence[str]]) -> str:
    return ", or ".join(" and ".join(names) for names in choices)
