"""What makes an image of a prompt and noise, as one digest: weights, settings and vocabularies."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from rlcm_cli.core.digests import digest_json, digest_tensors
from rlcm_cli.families import Family
from rlcm_cli.models.libraries import quiet_libraries

WITHOUT_EFFECT = {
    "architectures",
    "attention_dropout",
    "dtype",
    "initializer_factor",
    "initializer_range",
    "model_type",
    "torch_dtype",
    "transformers_version",
}
"""Entries of a text encoder's configuration that do not change what a frozen one computes."""

PROBES = (
    "",
    "a photo of a Cat, 4K!",
    "  two\twords\n",
    "café Cafe\u0301 İstanbul",
    "猫 と 犬",
    "don't we've 1234",
    "😀 &amp; <b>",
)
"""Texts on which tokenizers of one vocabulary differ: case, spaces, accents, contractions, digits, other scripts."""


def modules_of(pipeline: Any, family: Family) -> dict[str, torch.nn.Module]:
    """Return the modules that a pipeline of a family has, by name."""
    return {name: module for name in family.modules if (module := getattr(pipeline, name)) is not None}


def digest_pipeline(pipeline: Any, family: Family) -> str:
    """Return the SHA-256 over all that makes an image of a prompt and noise.

    That is every weight as loaded, the settings of each component that differ from its class's defaults, so that a
    newer library with new settings gives the same digest, and how the tokenizers cut texts.
    """
    modules = modules_of(pipeline, family)
    weights = {
        f"{part}.{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()
    }
    # Names with an underscore say which diffusers wrote the file.
    settings: dict[str, Any] = {k: _finite(v) for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    settings |= {name: getattr(pipeline.config, name) for name in family.loading.settings}
    tokenizers = [name for name in family.loading.components if name.startswith("tokenizer")]
    settings["components"] = {part: _settings_of(module) for part, module in modules.items()}
    there = [tokenizer for name in tokenizers if (tokenizer := getattr(pipeline, name)) is not None]
    settings["tokenizers"] = [_digest_tokenizer(tokenizer) for tokenizer in there]
    return digest_tensors(weights, settings)


def _settings_of(module: Any) -> dict[str, Any]:
    if hasattr(module.config, "to_diff_dict"):
        stated: Mapping[str, Any] = module.config.to_diff_dict()
        return {k: v for k, v in stated.items() if k not in WITHOUT_EFFECT and not k.startswith("_")}
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(type(module).__init__).parameters.items()
    }
    return {
        key: _plain(value)
        for key, value in module.config.items()
        if key in defaults and _plain(value) != _plain(defaults[key])
    }


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _finite(value: Any) -> Any:
    """Return a value as JSON has it: the schedulers of DPM-Solver write an infinity."""
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _digest_tokenizer(tokenizer: Any) -> str:
    """Return the SHA-256 of a vocabulary with merges or scores, how texts are cut, where a prompt ends, its frame."""
    vocabulary = dict(sorted(tokenizer.get_vocab().items()))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = _list_merges(json.loads(backend.to_str())["model"]) if backend is not None else []
    with quiet_libraries():
        cut = tokenizer(list(PROBES))["input_ids"]
    # Files of other ages have a merge as a text or as a pair.
    pairs = [merge if isinstance(merge, str) else " ".join(map(str, merge)) for merge in merges]
    # Of those that a language model reads prompts in.
    template = [tokenizer.chat_template] if getattr(tokenizer, "chat_template", None) else []
    ends = [tokenizer.model_max_length, tokenizer.padding_side, tokenizer.pad_token_id]
    return digest_json([vocabulary, pairs, cut, *ends, *template])


def _list_merges(model: Mapping[str, Any]) -> list[Any]:
    """Return the merges of a BPE, or of a unigram model, such as T5's, its tokens with their scores."""
    scored = model["vocab"] if isinstance(model.get("vocab"), list) else []
    merges: list[Any] = model.get("merges", scored)
    return merges
