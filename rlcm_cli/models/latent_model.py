"""A text-to-image model in latent space: diffusers' pipeline behind encode, predict and decode."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlcm_cli.core.padding import stack_rows
from rlcm_cli.core.schedule import PredictionType
from rlcm_cli.errors import NotFiniteError
from rlcm_cli.families import Family
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.text_encoders import AbsentEncoders
from rlcm_cli.models.trained import TrainedWeights
from rlcm_cli.recommendation import Recommendation
from rlcm_cli.samplers import Noise, Sampler
from rlcm_cli.sections import Quantization

KEPT_BYTES = 4_000_000_000
"""Of encoded prompts that a model remembers: 20,000 of Stable Diffusion's, 1,000 where a text has 512 tokens of 4,096
numbers each in 16 bits."""
MOST_OF_DISTILLED = 8
"""Steps: a model that is made for more was not distilled to few."""
FEW_TOKENS = 64
"""Latents of so many places at most, where plain products beat a fused attention kernel (see `attention_kernel`)."""

CACHED_PIXELS = 2**15
"""Pixels that a CPU decodes at once: with more, the activations of an autoencoder leave its caches."""


@dataclass
class LatentModel:
    """A loaded pipeline, frozen but for what is trained: an adapter on its denoiser, or the denoiser."""

    pipeline: Any
    """Of a class that the family lists. Its scheduler is the sampler's."""
    family: Family
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    digest: str
    """SHA-256 over all that makes an image of a prompt and noise: weights as loaded, a distilled LoRA's, the settings
    of every component, and the tokenizers."""
    quantized: Quantization | None = None
    """How many bits the weights of the denoiser's linear layers have; None: those of the dtype."""
    adapter_digest: str | None = None
    """Digest of the file whose weights are in the denoiser: a LoRA's, or its own."""
    commit: str | None = None
    """Of a model of the hub: the commit that its revision named when it was loaded."""
    recommended: Recommendation | None = None
    """How it is drawn with its sampler unless asked otherwise; None of a model with random weights."""
    attached: TrainedWeights | None = None
    """What is trained; None before something was attached."""
    base_weights: Mapping[str, Tensor] | None = None
    """The denoiser's weights as loaded, by name; None unless they are themselves trained."""
    sharded: bool = False
    """Whether this process has only a part of the denoiser's frozen weights, but for a moment before each use."""
    kept: dict[Any, Tensor] = field(default_factory=dict)
    """Tensors that the family keeps on the device from one call to the next."""
    companions: dict[str, LatentModel] = field(default_factory=dict)
    """Other models that training asks, by what they are known by: loaded once, kept from one iteration to the next."""
    absent_encoders: AbsentEncoders | None = None
    """What loads the text encoders while prompts are encoded; None: they are in the pipeline."""
    _encoded: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.image_size = self.family.latents.own_size(self.pipeline)
        """(height, width) of an image in pixels."""

    @property
    def denoiser(self) -> Any:
        """The module that predicts, and that is trained."""
        return getattr(self.pipeline, self.family.denoiser)

    @property
    def trained(self) -> TrainedWeights:
        """What is trained, which was attached before."""
        if self.attached is None:
            raise RuntimeError("nothing is attached to be trained")
        return self.attached

    @property
    def guided_by_embedding(self) -> bool:
        """Whether guidance was distilled into the denoiser, so that it costs no second prediction."""
        return self.family.guidance.is_embedded(self._settings)

    @property
    def is_distilled(self) -> bool:
        """Whether it was made for few steps, by its sampler or what its makers recommend."""
        usual = None if self.recommended is None else self.recommended.steps
        return self.sampler.distilled or (usual is not None and usual <= MOST_OF_DISTILLED)

    def count_predictions(self, guidance_scale: float) -> int:
        """Return how many predictions of the denoiser a guided one is made of."""
        return self.family.guidance.count_predictions(self._settings, guidance_scale)

    @property
    def _settings(self) -> dict[str, Any]:
        return self.family.merge_settings(self.denoiser.config, self.pipeline.config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents."""
        return self.family.latents.shape(self.pipeline, *self.image_size)

    def set_image_size(self, height: int, width: int) -> None:
        """Draw images of a size in pixels. Raises `ModelError` for a size that the model cannot have."""
        self.family.latents.set_size(self.pipeline, height, width)
        self.image_size = height, width
        self.forget_prompts()  # a family may tell the denoiser the size

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of the pipeline's training schedule, float32 [train steps], on the CPU.

        Raises `ConfigError` where it has none.
        """
        return self.noise.alphas_cumprod

    @property
    def noise(self) -> Noise:
        """The noise that the model was trained with."""
        return self.family.scheduling.read_noise(self)

    @property
    def prediction_type(self) -> PredictionType:
        """What the denoiser predicts, of a model that has ᾱ."""
        return cast("PredictionType", self.pipeline.scheduler.config.prediction_type)

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode U prompts to tables of U rows on the CPU: what `predict` is conditioned on.

        The family names the tables; `prompt_embeds` [U, tokens, width] is usual. Where guidance is not an embedding,
        there are also those of the empty prompt, such as `negative_prompt_embeds`. Floats are in the model's dtype;
        masks and numbers keep theirs. Zeros follow the rows of texts that have fewer tokens than the longest.
        """
        self.read_prompts(prompts)
        encoded = [self._encoded[prompt] for prompt in prompts]
        return {name: stack_rows([rows[name] for rows in encoded]) for name in encoded[0]}

    @torch.no_grad()
    def read_prompts(self, prompts: Sequence[str]) -> None:
        """Encode the prompts that are not encoded yet, and keep them: absent text encoders are loaded once for all.

        One prompt a call, so that an embedding's bytes do not depend on the other prompts. Raises `ModelError` where
        text encoders cannot be loaded.
        """
        wanted = dict.fromkeys(prompts)
        missing = [prompt for prompt in wanted if prompt not in self._encoded]
        if not missing:
            return
        with self._present_encoders(), quiet_libraries():  # which print what they cut off: see `count_cut_prompts`
            for prompt in missing:
                rows = self.family.text.encode(self, prompt)
                self._encoded[prompt] = {
                    name: row.to("cpu", self.dtype if row.is_floating_point() else row.dtype)
                    for name, row in rows.items()
                }
        self._forget_oldest(kept=wanted)

    def can_keep(self, count: int) -> bool:
        """Return whether as many prompts could be kept, each as long as the longest of those that are."""
        largest = max(map(_count_bytes, self._encoded.values()), default=0)
        return count * largest <= KEPT_BYTES

    def keep_encoders(self) -> None:
        """Have the text encoders in the pipeline from now on. Raises `ModelError` where they cannot be loaded."""
        if self.absent_encoders is not None:
            self.absent_encoders.bring_back()
            self.absent_encoders = None

    def _present_encoders(self) -> AbstractContextManager[None]:
        return nullcontext() if self.absent_encoders is None else self.absent_encoders.present()

    def _forget_oldest(self, kept: Collection[str]) -> None:
        total = sum(map(_count_bytes, self._encoded.values()))
        for prompt in [prompt for prompt in self._encoded if prompt not in kept]:
            if total <= KEPT_BYTES:
                return
            total -= _count_bytes(self._encoded.pop(prompt))

    def count_cut_prompts(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Return how many prompts are longer than the text encoder reads, and how many tokens that is."""
        with quiet_libraries():
            return self.family.text.count_cut(self.pipeline, list(prompts))

    def forget_prompts(self) -> None:
        """Encode all prompts again from now on: the text encoder has changed."""
        self._encoded.clear()

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], guidance_scale: float
    ) -> Tensor:
        """Predict with guidance: latents [B, C, h, w], model times [B], conditioning [B, …] → [B, C, h, w]."""
        with self.attention_kernel():
            return self.family.predict(self, latents, timesteps, conditioning, guidance_scale)

    def attention_kernel(self) -> AbstractContextManager[None]:
        """Choose how attention is computed where torch's own choice is slow: few tokens in 16 bits on a CPU.

        There its fused kernel takes half of a training step, most of it going backward. In drawing as in training,
        so that both round alike.
        """
        _, height, width = self.latent_shape
        if self.device.type == "cpu" and self.dtype.itemsize == 2 and height * width <= FEW_TOKENS:
            return cast("AbstractContextManager[None]", sdpa_kernel(SDPBackend.MATH))
        return nullcontext()

    def decode_floats(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, float32 [B, 3, H, W] in 0 … 255, differentiable.

        Clamped as an image is, so that a reward sees what `decode` gives but for the rounding: a pixel that is
        black or white already has no gradient outwards or inwards.

        Raises `NotFiniteError` for NaN and infinity, in latents or images: as pixels they would be black or white.
        """
        images = self.family.autoencoder.decode(self, latents)
        self._check_finite(latents, images)
        # Halved in the autoencoder's own dtype, as diffusers' image processor does.
        return (images * 0.5 + 0.5).clamp(0, 1).float() * 255

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, uint8 [B, 3, H, W], to latents [B, C, h, w] in the model's dtype, on its device.

        The mean of the autoencoder's posterior, whose spread is far below the noise that a diffusion model adds.
        """
        return self.family.autoencoder.encode(self, images.to(self.device).float() / 127.5 - 1).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, uint8 [B, 3, H, W] on the CPU, rounded as diffusers does.

        Raises `NotFiniteError` as `decode_floats` does.
        """
        height, width = self.image_size
        size = len(latents) if self.device.type != "cpu" else max(1, CACHED_PIXELS // (height * width))
        images = []
        for first in range(0, len(latents), size):
            try:
                # Bytes before they are copied: a CUDA device would send four times as much, for the CPU to convert.
                images.append(self.decode_floats(latents[first : first + size]).round().to(torch.uint8).cpu())
            except NotFiniteError as error:
                raise NotFiniteError(str(error), tuple(first + row for row in error.rows)) from None
        return torch.cat(images)

    def _check_finite(self, latents: Tensor, images: Tensor) -> None:
        """Raise `NotFiniteError` where the latents of an image, or what the decoder makes of them, are not finite."""
        sound = latents.detach().flatten(1).isfinite().all(1)
        drawn = images.detach().flatten(1).isfinite().all(1)
        whole = torch.stack([sound, drawn]).cpu()
        if whole.all():
            return
        decoder = bool(whole[0].all())
        part = "autoencoder" if decoder else self.family.denoiser_title
        dtype = str(images.dtype if decoder else self.dtype).removeprefix("torch.")
        advice = (
            "its weights or those of the LoRA are damaged, or the training rate was too high"
            if dtype == "float32"
            else "its values are too large for it: use --dtype float32 or bfloat16"
            if dtype == "float16"
            else "use --dtype float32; if that gives NaN too, weights are damaged"
        )
        rows = (~whole.all(0)).nonzero().flatten().tolist()
        raise NotFiniteError(f"the model's {part} gives NaN or infinity in {dtype}; {advice}", tuple(rows))


def _count_bytes(rows: Mapping[str, Tensor]) -> int:
    return sum(row.nbytes for row in rows.values())
