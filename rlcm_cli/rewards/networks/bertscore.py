"""BERTScore recall (arXiv 1904.09675, equation 1): how much of a reference a candidate says.

Each token of the reference takes its best cosine similarity with a token of the candidate, in the hidden states of one
layer of a language model; the recall is the mean over the reference's tokens without the special ones.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcm_cli.errors import ConfigError, RewardError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.folders import check_configuration, check_index, read_json_object
from rlcm_cli.foreign.tokenizers import check_vocabulary
from rlcm_cli.rewards.base.weights import Weights
from rlcm_cli.rewards.networks.loading import quiet_transformers
from rlcm_cli.wording import one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SCORER = Weights(
    "microsoft/deberta-xlarge-mnli",
    ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin"),
    "at most 3 GB",
)
"""The model of kvablack/LLaVA-server, and the one that bert-score recommends."""

_INSTALL = "install it with `pip install 'rlcm[alignment]'`"
_BATCH = 64


class RecallScorer:
    """Scores texts with the bert-score package, in float32.

    The model is loaded here and not by bert-score, which would not notice missing weights and takes any folder with
    "t5" in its path for a T5.

    Args:
        model: Folder or hub id of a language model.
        layer: Layer of the hidden states, from 1; None takes bert-score's choice for a published model.
        reward: Name of the reward, for messages.

    Raises:
        ConfigError: If the layer is impossible, or is needed and missing.
        RewardError: If bert-score is not installed, or the model cannot be downloaded or used.
    """

    def __init__(self, model: str, layer: int | None, reward: str) -> None:
        if not _is_installed():
            raise RewardError(f"reward {reward!r} needs the bert-score package; {_INSTALL}")
        _check_layer(layer, reward)
        layer = layer or _published_layer(model, reward)
        folder = _find_folder(model, reward)
        self._model = _load_model(folder, layer, reward)
        self._tokenizer = _load_tokenizer(folder, reward)
        # Some tokenizers name no longest text, and bert-score hands their 1e30 on. Two places may be reserved.
        longest = (getattr(self._model.config, "max_position_embeddings", None) or 512) - 2
        self._tokenizer.model_max_length = min(self._tokenizer.model_max_length, longest)
        self._weights = defaultdict(
            lambda: 1.0, {self._tokenizer.cls_token_id: 0.0, self._tokenizer.sep_token_id: 0.0}
        )

    def __call__(self, candidates: Sequence[str], references: Sequence[str], device: torch.device) -> Tensor:
        """Return the recall of B candidates against B references, float32 [B] on the CPU; 0 for an empty candidate.

        Zero is what bert-score means to give an empty candidate; with current transformers it fails instead.
        """
        import torch

        recalls = torch.zeros(len(candidates))
        said = [row for row, candidate in enumerate(candidates) if candidate.strip()]
        self._model.to(device)
        for start in range(0, len(said), _BATCH):
            rows = said[start : start + _BATCH]
            recalls[rows] = self._recall([candidates[row] for row in rows], [references[row] for row in rows], device)
        return recalls

    def _recall(self, candidates: list[str], references: list[str], device: torch.device) -> Tensor:
        # Not its `score`: that goes through a set of texts, whose order, and with it the rounding, changes with every
        # process.
        from bert_score.utils import get_bert_embedding, greedy_cos_idf

        embed = [
            get_bert_embedding(texts, self._model, self._tokenizer, self._weights, device=device)
            for texts in (references, candidates)
        ]
        _, recall, _ = greedy_cos_idf(*embed[0], *embed[1])
        return recall.cpu()  # type: ignore[no-any-return]


def find_scorer_obstacle(model: str, reward: str) -> str | None:
    """Return why texts cannot be scored here now; None where they can."""
    if not _is_installed():
        return f"the bert-score package is not here; {_INSTALL}"
    return SCORER.find_obstacle(model, reward=reward, setting="scorer_model")


def digest_scorer(model: str, reward: str) -> str:
    """Return the SHA-256 (hex) over the files of the scorer's model."""
    return SCORER.digest(_find_folder(model, reward), reward=reward)


def _is_installed() -> bool:
    return importlib.util.find_spec("bert_score") is not None


def _find_folder(model: str, reward: str) -> Path:
    return SCORER.find(model, reward=reward, setting="scorer_model")


def _check_layer(layer: object, reward: str) -> None:
    if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 1):
        raise ConfigError(f"reward {reward!r}: scorer_layer {layer!r} must be a whole number above 0")


def _published_layer(model: str, reward: str) -> int:
    from bert_score.utils import model2layers

    if model not in model2layers:
        raise ConfigError(
            f"reward {reward!r}: bert-score knows no layer for {model!r}; set reward_settings.{reward}.scorer_layer "
            f"({model2layers[SCORER.source]} for a copy of {SCORER.source})"
        )
    layer: int = model2layers[model]
    return layer


def _load_model(folder: Path, layer: int, reward: str) -> Any:
    """Load a language model up to a layer, so that its output is that layer's hidden states."""
    import pickle

    import torch
    from transformers import AutoConfig, AutoModel

    try:
        check_configuration(read_json_object(folder / "config.json"), folder / "config.json")
        for index in folder.glob("*.safetensors.index.json"):
            check_index(index)
        with quiet_transformers(), faults_of_libraries():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if layer > config.num_hidden_layers:
                raise ConfigError(
                    f"reward {reward!r}: scorer_layer {layer} is above the {config.num_hidden_layers} layers of the "
                    f"model in {folder}"
                )
            if config.is_encoder_decoder:
                raise ValueError("it has a decoder; a scorer is an encoder such as BERT, RoBERTa or DeBERTa")
            config.num_hidden_layers = layer
            model, report = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                # DeBERTa is published as a pickle only; transformers reads that with weights_only.
                use_safetensors=any(folder.glob("*.safetensors")),
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (ForeignError, pickle.UnpicklingError) as error:
        raise _unusable(folder, reward, one_line(error)) from error
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise _unusable(folder, reward, f"the weights lack {', '.join(missing[:3])}")
    return model.eval().requires_grad_(False)


def _load_tokenizer(folder: Path, reward: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers(), faults_of_libraries():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            check_vocabulary(tokenizer)
    except ForeignError as error:
        raise _unusable(folder, reward, str(error)) from error
    return tokenizer


def _unusable(folder: Path, reward: str, fault: str) -> RewardError:
    return RewardError(
        f"reward {reward!r}: the scorer in {folder} cannot be used as a language model of transformers ({fault}); set "
        "scorer_model to another folder or hub id"
    )
