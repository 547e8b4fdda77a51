"""What makes an image of a prompt and noise, as one digest: weights, settings and vocabularies."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from rlcm_cli.core.digests import digest_contents, digest_json, view_tensors
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


def digest_modules(modules: Iterable[tuple[str, torch.nn.Module]], settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all that makes an image of a prompt and noise.

    That is what `settings_of` returns, and every weight as loaded. `modules` come in the order of their names. Each is
    read to its end before the next is asked for, so that a generator may load one after the other and keep none.
    """
    # No name of a component has a point, so that this order is that of all tensors' names together. In a chain, which
    # drops a module before it asks for the next: a loop would hold on to it.
    return digest_contents(itertools.chain.from_iterable(map(_view_module, modules)), settings)


def _view_module(named: tuple[str, torch.nn.Module]) -> Iterator[tuple[str, str, Sequence[int], memoryview]]:
    part, module = named
    return view_tensors({f"{part}.{name}": tensor for name, tensor in module.state_dict().items()})


def settings_of(pipeline: Any, family: Family) -> dict[str, Any]:
    """Return what beside weights makes an image of a prompt and noise; the modules of the pipeline need none.

    That is the settings of each component that differ from its class's defaults, so that a newer library with new
    settings gives the same digest, and how the tokenizers cut texts.
    """
    # Names with an underscore say which diffusers wrote the file.
    settings: dict[str, Any] = {k: _finite(v) for k, v in pipeline.scheduler.config.items() if not k.startswith("_")}
    settings |= {name: getattr(pipeline.config, name) for name in family.loading.settings}
    tokenizers = [name for name in family.loading.components if name.startswith("tokenizer")]
    settings["components"] = {part: _settings_of(module) for part, module in modules_of(pipeline, family).items()}
    there = [tokenizer for name in tokenizers if (tokenizer := getattr(pipeline, name)) is not None]
    settings["tokenizers"] = [_digest_tokenizer(tokenizer) for tokenizer in there]
    return settings


def _settings_of(module: Any) -> dict[str, Any]:
    if hasattr(module.config, "to_diff_dict"):
        return _keep_effective(module.config.to_diff_dict())
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(type(module).__init__).parameters.items()
    }
    return {
        key: _plain(value)
        for key, value in module.config.items()
        if key in defaults and _plain(value) != _plain(defaults[key])
    }


def _keep_effective(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what has no effect, in the configurations of a model's parts too."""
    kept = {key: value for key, value in stated.items() if key not in WITHOUT_EFFECT and not key.startswith("_")}
    return {key: _keep_effective(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


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
