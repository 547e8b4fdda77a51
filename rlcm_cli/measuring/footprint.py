"""What a model takes in memory and arithmetic, from the shapes of its tensors: nothing is loaded, nothing is computed.

Modules lie on torch's meta device. What is left out: the driver's own part, workspaces of kernels, fragments of the
allocator, and the layers that 4 and 8 bits are unpacked to, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import LoraSettings
from rlcm_cli.core.allocations import PeakAllocations
from rlcm_cli.core.gaussian import gaussian_log_prob
from rlcm_cli.measuring.attention import fused_attention
from rlcm_cli.measuring.flops import count_flops
from rlcm_cli.models.architectures import build_architecture, build_text_encoders
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import attach_lora, lora_parameters
from rlcm_cli.models.memory import checkpoint_activations
from rlcm_cli.models.parts import recommend_architecture

META = "meta"
BLOCK = 64
"""WeightCounts of 4 bits that share a scale, a float32."""
ADAPTER_BYTES = 12
"""Of a trained number: itself and Adam's two moments, float32. Its gradient is among what a step takes."""


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of a module."""

    total: int
    linear: int
    """Those of linear layers, biases left out: the ones that are quantised."""
    rows: int
    """Outputs of these layers."""

    def count_bytes(self, bits: int = 16) -> int:
        """Return the bytes, with linear layers in 16, 8 or 4 bits and the rest in 16.

        In 8 bits a row has a float32 scale (arXiv 2208.07339), in 4 bits each block of 64 (arXiv 2305.14314).
        """
        linear = {16: 2 * self.linear, 8: self.linear + 4 * self.rows, 4: self.linear // 2 + 4 * self.linear // BLOCK}
        return 2 * (self.total - self.linear) + linear[bits]


@dataclass(frozen=True)
class Activations:
    """Bytes that work on one image takes at most at once, in 16 bits, beside the weights."""

    call: int
    """A model call, guidance included."""
    decode: int
    transition: int
    """Training on one transition: forward and backward pass, and the gradient of the adapter."""
    checkpointed: int
    """The same, activations computed twice."""


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of work on one image."""

    call: int
    decode: int
    transition: int
    """Forward and backward pass, without computing activations twice."""


@dataclass(frozen=True)
class Footprint:
    """A model drawn and trained with a LoRA of the default rank, at one size."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    text_encoders: WeightCounts
    denoiser: WeightCounts
    autoencoder: WeightCounts
    adapter: int
    """Numbers that are trained."""
    activations: Activations
    flops: Arithmetic

    def drawing_bytes(self, *, bits: int, keeps_text: bool) -> int:
        """Return what drawing one image at a time takes, text encoders kept or dropped once prompts are encoded."""
        weights = self.denoiser.count_bytes(bits) + self.autoencoder.count_bytes()
        return self._beside_text(weights + max(self.activations.call, self.activations.decode), keeps_text)

    def training_bytes(self, *, bits: int, checkpointing: bool, keeps_text: bool) -> int:
        """Return what a loop takes that draws one image and trains on one transition at a time."""
        taken = self.activations
        step = taken.checkpointed if checkpointing else taken.transition
        weights = self.denoiser.count_bytes(bits) + self.autoencoder.count_bytes() + ADAPTER_BYTES * self.adapter
        return self._beside_text(weights + max(step, taken.call, taken.decode), keeps_text)

    def _beside_text(self, rest: int, keeps_text: bool) -> int:
        text = self.text_encoders.count_bytes()
        return text + rest if keeps_text else max(text, rest)


def weigh(modules: Iterable[torch.nn.Module]) -> WeightCounts:
    """Count the numbers of modules."""
    known = list(modules)
    linear = [layer for module in known for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    return WeightCounts(
        sum(parameter.numel() for module in known for parameter in module.parameters()),
        sum(layer.weight.numel() for layer in linear),
        sum(layer.out_features for layer in linear),
    )


def measure_architecture(name: str) -> Footprint:
    """Measure an architecture in bfloat16 at its own size, drawn as recommended. Raises `ModelError`."""
    model = build_architecture(name, dtype="bfloat16", device=META)
    encoders = build_text_encoders(name, dtype="bfloat16", device=META).values()
    return measure_model(model, encoders, recommend_architecture(name).guidance_scale)


def measure_model(model: LatentModel, encoders: Iterable[torch.nn.Module], guidance_scale: float) -> Footprint:
    """Measure a model on the meta device in bfloat16, with its text encoders. The model keeps the LoRA."""
    denoiser = weigh([model.denoiser])
    flops, activations, adapter = measure_work(model, guidance_scale)
    return Footprint(
        model.image_size,
        weigh(encoders),
        denoiser,
        weigh([model.pipeline.vae]),
        adapter,
        activations,
        flops,
    )


def measure_work(model: LatentModel, guidance_scale: float) -> tuple[Arithmetic, Activations, int]:
    """Measure work on one image with a model on the meta device, and a fresh LoRA of the default settings.

    Returns the arithmetic, the activations, and the numbers that are trained. The model keeps the LoRA.
    """
    latents = torch.empty(1, *model.latent_shape, dtype=model.dtype, device=META)
    times = torch.empty(1, device=META)
    conditioning = {name: table.to(META) for name, table in model.encode_prompts([""]).items()}

    def predict() -> Tensor:
        return model.predict(latents, times, conditioning, guidance_scale)

    @torch.no_grad()
    def call() -> None:
        predict()

    @torch.no_grad()
    def decode() -> None:
        model.family.autoencoder.decode(model, latents)

    def train() -> None:
        for parameter in parameters:
            parameter.grad = None
        log_prob = gaussian_log_prob(latents, predict(), torch.ones((), device=META), "mean")
        log_prob.exp().mean().backward()  # type: ignore[no-untyped-call]

    with fused_attention():
        call_peak, decode_peak = measure_peak(call), measure_peak(decode)
        call_flops, decode_flops = count_flops(call), count_flops(decode)
        lora = LoraSettings()
        attach_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, run_seed=0)
        parameters = list(lora_parameters(model).values())
        peaks = []
        for wanted in (True, False):
            checkpoint_activations(model, wanted)
            peaks.append(measure_peak(train))
        flops = Arithmetic(call_flops, decode_flops, count_flops(train))
    adapter = sum(parameter.numel() for parameter in parameters)
    return flops, Activations(call_peak, decode_peak, peaks[1], peaks[0]), adapter


def measure_peak(work: Callable[[], object]) -> int:
    """Do some work, and return the bytes of the tensors that it makes, at most at once."""
    with PeakAllocations() as counted:
        work()
    return int(counted.peak)
