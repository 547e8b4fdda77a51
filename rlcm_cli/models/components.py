"""The components of a pipeline: each loaded whole or refused."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights

from rlcm_cli.errors import ModelError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.tokenizers import check_vocabulary
from rlcm_cli.foreign.weights import check_report
from rlcm_cli.models.folders import PipelineFolder
from rlcm_cli.models.libraries import quiet_libraries

DERIVED = {"block_out_channels", "force_upcast"}
"""What some autoencoders write into their configurations although they do not read it."""
EXTRA_TOWERS = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias")
"""Tensors of a whole CLIP model that a mere text encoder has no use for."""

_log = logging.getLogger(__name__)


def load_module(folder: PipelineFolder, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
    """Load the weights of a component in safetensors, all of them.

    Args:
        folder: The pipeline's.
        part: Its name in model_index.json, such as `text_encoder`.
        kind: Its class, of diffusers or transformers.
        dtype: Of its weights.

    Raises:
        ModelError: If it cannot be read, or a weight is missing or has another shape.
    """
    library = kind.__module__.partition(".")[0]
    config = folder.read_config(part)
    variant = folder.find_variant(part, library)
    arguments = {"dtype": dtype} if library == "transformers" else {"torch_dtype": dtype}
    with folder.explained(), quiet_libraries(), _named(part):
        module, report = kind.from_pretrained(
            folder.path / part,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
            **arguments,
        )
    _check_report(folder, part, module, report)
    if variant is not None:
        loaded = str(dtype).removeprefix("torch.")
        _log.warning("%s: its %s is there as the %s variant only; loaded as %s", folder.name, part, variant, loaded)
    if library == "diffusers":
        _tell_ignored(folder, part, module, config)
    return module  # type: ignore[no-any-return]


def describe_module(folder: PipelineFolder, part: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
    """Make a component without its weights, on the meta device, as its configuration says.

    Raises `ModelError` where no such component can be made.
    """
    folder.read_config(part)
    with folder.explained(), quiet_libraries(), _named(part):
        if kind.__module__.startswith("diffusers."):
            with init_empty_weights():
                module = kind.from_config(kind.load_config(folder.path / part, local_files_only=True))
        else:
            config = kind.config_class.from_pretrained(folder.path / part, local_files_only=True)
            with torch.device("meta"):
                module = kind(config)
        return module.to(dtype)  # type: ignore[no-any-return]


def load_tokenizer(folder: PipelineFolder, part: str, kind: Any) -> Any:
    """Load a tokenizer. Raises `ModelError` where it cannot be read, or has no vocabulary."""
    folder.read_config(part, "tokenizer_config.json")
    with folder.explained(), quiet_libraries(), _named(part):
        tokenizer = kind.from_pretrained(folder.path / part, local_files_only=True, trust_remote_code=False)
    with folder.explained("get its files (tokenizer.json, or vocab.json and merges.txt) again"), _named(part):
        check_vocabulary(tokenizer)
    return tokenizer


def load_scheduler(folder: PipelineFolder, kind: Any) -> Any:
    """Load a scheduler. Raises `ModelError` where it cannot be read, or its noise schedule is none."""
    folder.read_config("scheduler", "scheduler_config.json")
    with folder.explained("fix scheduler/scheduler_config.json"), quiet_libraries(), _named("scheduler"):
        return kind.from_pretrained(folder.path / "scheduler", local_files_only=True)


def _check_report(folder: PipelineFolder, part: str, module: torch.nn.Module, report: Mapping[str, Any]) -> None:
    where = f"{folder.name}: the weights of its {part}"
    try:
        unloaded = {key for key, parameter in module.named_parameters() if parameter.is_meta}
        misshapen = {str(entry[0]) for entry in report["mismatched_keys"]}
        check_report({**report, "missing_keys": ({*report["missing_keys"]} | unloaded) - misshapen})
    except ForeignError as fault:
        raise ModelError(f"{where} ({type(module).__name__}) {fault}; download the model's files again") from None
    extra = sorted(key for key in report["unexpected_keys"] if not key.startswith(EXTRA_TOWERS))
    if extra:
        told = f"{len(extra)} tensors that its config.json has no place for, '{extra[0]}' among them"
        _log.warning("%s hold %s: they are not used", where, told)


def _tell_ignored(folder: PipelineFolder, part: str, module: Any, stated: Mapping[str, Any]) -> None:
    known = {*inspect.signature(type(module).__init__).parameters, *DERIVED}
    ignored = sorted(key for key in stated if not key.startswith("_") and key not in known)
    if ignored:
        _log.warning("%s: diffusers ignores %s in %s/config.json", folder.name, ", ".join(ignored), part)


@contextlib.contextmanager
def _named(part: str) -> Iterator[None]:
    """Turn what the libraries raise within the block into a `ForeignError` that names the component."""
    try:
        with faults_of_libraries():
            yield
    except ForeignError as fault:
        raise ForeignError(f"its {part} cannot be used ({fault})") from fault
