"""A frozen denoiser whose linear layers have 4 or 8 bits, by diffusers' own quantisers for bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from rlcm_cli.core.digests import digest_json
from rlcm_cli.errors import ModelError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.sections import Quantization

DEVICES = ("cpu", "cuda", "xpu")
"""Those that bitsandbytes computes on."""


def check_quantisation(kind: Quantization, place: torch.device) -> None:
    """Raise `ModelError` where nothing can be quantised: without its package, or on a device that it does not know."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"--quantize {kind} needs the package bitsandbytes, which is not installed; pip install 'rlcm[quantize]'"
        )
    if place.type not in DEVICES:
        raise ModelError(
            f"--quantize {kind}: bitsandbytes does not compute on the device '{place}'; use --device cuda or cpu, or "
            "leave it out"
        )


def quantise_denoiser(model: LatentModel, kind: Quantization) -> None:
    """Replace the linear layers of a denoiser on the CPU by quantised ones, and move all of it to the model's device.

    A layer after the other, so that the device never has more than one of them whole. 4 bits are NF4 with a float32
    scale per 64 weights (arXiv 2305.14314), multiplied in the model's dtype. 8 bits are LLM.int8 without outliers
    (arXiv 2208.07339): a scale per row of the weights, and one per token of what they are multiplied with. Biases,
    convolutions, norms and embeddings stay as they are. Raises `ModelError` as `check_quantisation`.
    """
    denoiser, place = model.denoiser, model.device
    check_quantisation(kind, place)
    with quiet_libraries():
        quantiser = _make_quantiser(kind, model.dtype)
        # Layers without weights take the places of those that have some.
        linear = {name: layer for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear)}
        quantiser.preprocess_model(denoiser, device_map=None, keep_in_fp32_modules=[])
        for name, layer in linear.items():
            quantiser.create_quantized_param(denoiser, layer.weight.data, f"{name}.weight", place, {})
            denoiser.get_submodule(name).bias = layer.bias
            del layer.weight  # the denoiser no longer has it: this was the last that did
        quantiser.postprocess_model(denoiser)
        # diffusers' own `to` refuses to move what has 8 bits, although it is there already.
        nn.Module.to(denoiser, place)
    for layer in denoiser.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # Else weights are laid out again for drawing on such a CPU, and have no gradient for training any more.
            layer.support_avx512bf16_for_cpu = False
    denoiser.requires_grad_(False)
    model.quantized, model.digest = kind, digest_quantised(model.digest, kind)


def digest_quantised(digest: str, kind: Quantization | None) -> str:
    """Return the digest of a model whose denoiser was quantised, of the one that it has without; None: the same."""
    return digest if kind is None else digest_json([digest, "quantize", kind])


def quantised_tensors(module: nn.Module) -> list[Tensor]:
    """Return the scales and tables of quantised layers, which are none of their parameters and buffers."""
    found: list[Tensor | None] = []
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        four = getattr(weight, "quant_state", None)
        found += [getattr(four, "absmax", None), getattr(four, "code", None)]
        # With 8 bits the layer takes the scales from its weight when it is first called.
        found += [getattr(weight, "SCB", None), getattr(getattr(layer, "state", None), "SCB", None)]
    return [tensor for tensor in found if tensor is not None]


def _make_quantiser(kind: Quantization, dtype: torch.dtype) -> Any:
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers import DiffusersAutoQuantizer

    if kind == "4bit":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        # With outliers apart, what a row is multiplied with would depend on the other images of its batch.
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    # Its `validate_environment`, which is not called, asks for a GPU that bitsandbytes no longer needs.
    return DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
