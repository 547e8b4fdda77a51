"""The components of a pipeline: each loaded whole or refused, and checked to belong together."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rlcm_cli.errors import ModelError
from rlcm_cli.foreign.faults import ForeignError, faults_of_libraries
from rlcm_cli.foreign.tokenizers import KNOWN_WORDS, check_vocabulary
from rlcm_cli.foreign.weights import check_report
from rlcm_cli.models.folders import PipelineFolder
from rlcm_cli.models.libraries import quiet_libraries

LEGACY_END = 2
"""End-of-text id in the configurations of old CLIP text encoders, for which transformers takes the largest id."""
DERIVED = {"block_out_channels", "force_upcast"}
"""What some autoencoders write into their configurations although they do not read it."""
EXTRA_TOWERS = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias")
"""Tensors of a whole CLIP model that a text encoder alone has no use for."""

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


def check_noise_schedule(name: str, scheduler: Any) -> None:
    """Raise `ModelError` unless ᾱ falls from at most 1 to at least 0 over the training steps."""
    alphas = scheduler.alphas_cumprod
    falls = (alphas[1:] <= alphas[:-1]).all() if len(alphas) else False
    if not (falls and torch.isfinite(alphas).all() and alphas[0] <= 1 and alphas[-1] >= 0 and alphas[0] > 0):
        raise ModelError(
            f"{name}: the noise schedule of scheduler/scheduler_config.json does not fall from 1 towards 0 "
            "(beta_start, beta_end, trained_betas, num_train_timesteps); fix it"
        )


def check_fit(name: str, parts: Mapping[str, Any]) -> None:
    """Raise `ModelError` where the components of a pipeline, by name, were not made for each other."""
    for suffix in ("", "_2"):
        if f"text_encoder{suffix}" in parts:
            _check_tokens(name, parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"], f"tokenizer{suffix}")
    unet, vae = parts["unet"].config, parts["vae"].config
    _check_inputs(name, unet, pooled="text_encoder_2" in parts)
    size = unet.sample_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ModelError(
            f"{name}: sample_size of its unet is {size!r}, not a number of latents above 0; fix its config"
        )
    if vae.get("latent_channels") != unet.in_channels:
        raise ModelError(
            f"{name}: its vae makes latents of {vae.get('latent_channels')} channels, and its unet takes "
            f"{unet.in_channels}; use the vae that belongs to it"
        )
    _check_scale(name, vae)
    encoders = [parts[part].config for part in ("text_encoder", "text_encoder_2") if part in parts]
    width = sum(encoder.hidden_size for encoder in encoders)
    taken = unet.encoder_hid_dim or unet.cross_attention_dim
    if width not in (taken if isinstance(taken, Sequence) else [taken]):
        raise ModelError(
            f"{name}: its text encoder gives vectors of {width} numbers, and its unet takes {taken}; use the text "
            "encoder that belongs to it"
        )
    if unet.addition_embed_type == "text_time":
        added = encoders[-1].projection_dim + 6 * unet.addition_time_embed_dim
        if added != unet.projection_class_embeddings_input_dim:
            raise ModelError(
                f"{name}: its text_encoder_2 and sizes give {added} numbers, and its unet takes "
                f"{unet.projection_class_embeddings_input_dim}; use the text encoder that belongs to it"
            )


def _check_inputs(name: str, unet: Any, *, pooled: bool) -> None:
    """Raise `ModelError` where a U-Net asks for more than latents, times and texts; `pooled`: SDXL's texts."""
    wanted = {
        "addition_embed_type": "text_time" if pooled else None,
        "class_embed_type": None,
        "num_class_embeds": None,
    }
    for key, value in wanted.items():
        if unet.get(key) != value:
            raise ModelError(
                f"{name}: {key} of its unet is {unet.get(key)!r}, and {value!r} is what a pipeline with "
                f"{'two text encoders' if pooled else 'one text encoder'} gives it; use a text-to-image pipeline"
            )
    if unet.encoder_hid_dim_type not in (None, "text_proj"):
        raise ModelError(
            f"{name}: its unet is conditioned on images ({unet.encoder_hid_dim_type}); use a text-to-image pipeline"
        )


def _check_scale(name: str, vae: Any) -> None:
    scale, mean, std = (vae.get(key) for key in ("scaling_factor", "latents_mean", "latents_std"))
    statistics_fit = mean is None or (
        all(isinstance(values, Sequence) and len(values) == vae.latent_channels for values in (mean, std))
        and all(_is_finite(value) for value in (*mean, *std))
        and min(std) > 0
    )
    if not (_is_finite(scale) and scale > 0 and statistics_fit):
        raise ModelError(
            f"{name}: scaling_factor, latents_mean or latents_std in vae/config.json cannot scale latents of "
            f"{vae.latent_channels} channels; fix them"
        )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_tokens(name: str, tokenizer: Any, encoder: Any, part: str) -> None:
    config = encoder.config
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{name}: its {part} has {len(tokenizer):,} tokens, and its text encoder knows {config.vocab_size:,}; use "
            "the tokenizer that belongs to it"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokenizer.model_max_length > longest:
        raise ModelError(
            f"{name}: its {part} cuts prompts to {tokenizer.model_max_length} tokens, and its text encoder takes "
            f"{longest}; set model_max_length in {part}/tokenizer_config.json"
        )
    end = getattr(config, "eos_token_id", None)
    pools = hasattr(encoder, "text_projection")
    if pools and end != LEGACY_END and end not in tokenizer(KNOWN_WORDS[0])["input_ids"]:
        raise ModelError(
            f"{name}: its {part} never ends a prompt with the token {end}, at which its text encoder reads the whole "
            "prompt (eos_token_id); use the tokenizer that belongs to it"
        )


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
