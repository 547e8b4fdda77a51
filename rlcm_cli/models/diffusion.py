"""A text-to-image model in latent space: diffusers' pipeline behind encode, predict and decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlcm_cli.core.schedule import PredictionType
from rlcm_cli.errors import ModelError, NotFiniteError
from rlcm_cli.models.conditioning import encode_prompt, is_sdxl, unet_arguments, with_negative
from rlcm_cli.samplers import Noise, Sampler

KEPT_PROMPTS = 2000
"""Encoded prompts that a model remembers; of Stable Diffusion's each is 0.2 MB."""
FEW_TOKENS = 64
"""Latents of so many places at most, where plain products beat a fused attention kernel (see `attention_kernel`)."""

CACHED_PIXELS = 2**15
"""Pixels that a CPU decodes at once: with more, the activations of an autoencoder leave its caches."""


@dataclass
class DiffusionModel:
    """A loaded pipeline, frozen but for what is trained: an adapter on its U-Net, or the U-Net."""

    pipeline: Any
    """`diffusers.LatentConsistencyModelPipeline` where guidance is an embedding of the U-Net, else
    `StableDiffusionPipeline`; `StableDiffusionXLPipeline` for both of SDXL's size. Its scheduler is the sampler's."""
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    digest: str
    """SHA-256 over all that makes an image of a prompt and noise: weights as loaded, a distilled LoRA's, the settings
    of every component, and the tokenizers."""
    adapter_digest: str | None = None
    """Digest of the LoRA or U-Net file whose weights are in the U-Net."""
    commit: str | None = None
    """Of a model of the hub: the commit that its revision named when it was loaded."""
    base_weights: Mapping[str, Tensor] | None = None
    """The U-Net's weights as loaded, by name; None unless they are themselves trained."""
    _encoded: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    _guidance: dict[float, Tensor] = field(default_factory=dict)
    """Guidance scale → its embedding [1, width], on the device."""

    @property
    def unet(self) -> Any:
        """The U-Net, `UNet2DConditionModel`."""
        return self.pipeline.unet

    @property
    def guided_by_embedding(self) -> bool:
        """Whether guidance was distilled into the U-Net, so that it costs no second prediction."""
        return bool(self.unet.config.time_cond_proj_dim)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def image_size(self) -> int:
        """Pixels along each side of an image."""
        return int(self.unet.config.sample_size * self.pipeline.vae_scale_factor)

    def set_image_size(self, size: int) -> None:
        """Draw images of `size` pixels along each side. Raises `ModelError` for a size that the model cannot have."""
        scale = int(self.pipeline.vae_scale_factor)
        unit = scale * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if size < unit or size % unit:
            raise ModelError(f"images of {size} pixels: this model's are multiples of {unit} pixels; choose one")
        self.unet.register_to_config(sample_size=size // scale)
        if is_sdxl(self.pipeline):  # which tells the U-Net the size
            self.pipeline.default_sample_size = size // scale

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of the pipeline's training schedule, float32 [train steps], on the CPU."""
        return cast("Tensor", self.pipeline.scheduler.alphas_cumprod.cpu())

    @property
    def noise(self) -> Noise:
        """The noise that the model was trained with."""
        return Noise(self.pipeline.scheduler.config, self.alphas_cumprod)

    @property
    def prediction_type(self) -> PredictionType:
        """What the U-Net predicts."""
        return cast("PredictionType", self.pipeline.scheduler.config.prediction_type)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode U prompts to tables of U rows, in the model's dtype, on the CPU: what `predict` is conditioned on.

        `prompt_embeds` [U, tokens, width]. Where guidance is no embedding, also `negative_prompt_embeds`, those of
        the empty prompt. For SDXL also `pooled_prompt_embeds` [U, width], `negative_pooled_prompt_embeds` and
        `time_ids` [U, 6].

        One prompt a call, so that an embedding's bytes do not depend on the prompts beside it.
        """
        for prompt in prompts:
            if prompt not in self._encoded:
                rows = encode_prompt(self.pipeline, prompt, self.device)
                self._encoded[prompt] = {name: row.to("cpu", self.dtype) for name, row in rows.items()}
        encoded = [self._encoded[prompt] for prompt in prompts]
        for prompt in list(self._encoded)[:-KEPT_PROMPTS]:
            del self._encoded[prompt]
        return {name: torch.stack([rows[name] for rows in encoded]) for name in encoded[0]}

    def forget_prompts(self) -> None:
        """Encode all prompts anew from now on: the text encoder has changed."""
        self._encoded.clear()

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], guidance_scale: float
    ) -> Tensor:
        """Predict with guidance: latents [B, C, h, w], timesteps int64 [B], conditioning [B, …] → [B, C, h, w].

        A U-Net that guidance was distilled into takes it as the embedding of w = guidance_scale − 1 (LCM,
        arXiv 2310.04378). Any other is asked twice above 1, in one batch of 2B, as the pipelines of diffusers do:
        classifier-free guidance, ε(∅) + guidance_scale · (ε(c) − ε(∅)) (arXiv 2207.12598).
        """
        if self.guided_by_embedding:
            embedding = self._embed_guidance(guidance_scale).expand(len(latents), -1)
            return self._call_unet(latents, timesteps, conditioning, embedding)
        if guidance_scale <= 1:
            return self._call_unet(latents, timesteps, conditioning)
        both = self._call_unet(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), with_negative(conditioning))
        negative, positive = both.chunk(2)
        return negative + guidance_scale * (positive - negative)

    def _embed_guidance(self, guidance_scale: float) -> Tensor:
        # Kept, since a copy to the device at each call would wait for all that was asked of it before.
        if guidance_scale not in self._guidance:
            w = torch.full((1,), guidance_scale - 1)
            embedding = self.pipeline.get_guidance_scale_embedding(w, self.unet.config.time_cond_proj_dim)
            self._guidance[guidance_scale] = embedding.to(self.device, self.dtype)
        return self._guidance[guidance_scale]

    def _call_unet(
        self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], guidance: Tensor | None = None
    ) -> Tensor:
        with self.attention_kernel():
            output = self.unet(
                latents, timesteps, timestep_cond=guidance, **unet_arguments(conditioning), return_dict=False
            )[0]
        return cast("Tensor", output)

    def attention_kernel(self) -> AbstractContextManager[None]:
        """Choose how attention is computed where torch's own choice is slow: few tokens in 16 bits on a CPU.

        There its fused kernel takes half of a training step, most of it going backward. In drawing as in training,
        so that both round alike.
        """
        size = self.unet.config.sample_size
        if self.device.type == "cpu" and self.dtype.itemsize == 2 and size * size <= FEW_TOKENS:
            return cast("AbstractContextManager[None]", sdpa_kernel(SDPBackend.MATH))
        return nullcontext()

    def decode_floats(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, float32 [B, 3, H, W] in 0 … 255, differentiable.

        Clamped as an image is, so that a reward sees what `decode` gives but for the rounding: a pixel that is
        black or white already has no gradient outwards or inwards.

        Raises `NotFiniteError` for NaN and infinity, in latents or images: as pixels they would be black or white.
        """
        vae = self.pipeline.vae
        images = vae.decode(self._unscale(latents.to(vae.dtype)), return_dict=False)[0]
        self._check_finite(latents, images)
        # Halved in the autoencoder's own dtype, as diffusers' image processor does.
        return cast("Tensor", (images * 0.5 + 0.5).clamp(0, 1).float() * 255)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, uint8 [B, 3, H, W], to latents [B, C, h, w] in the model's dtype, on its device.

        The mean of the autoencoder's posterior, whose spread is far below the noise that a diffusion model adds.
        """
        vae = self.pipeline.vae
        encoded = vae.encode((images.to(self.device).float() / 127.5 - 1).to(vae.dtype))
        # AutoencoderTiny has no posterior.
        latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded.latents
        return self._scale(latents).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, uint8 [B, 3, H, W] on the CPU, rounded as diffusers does.

        Raises `NotFiniteError` as `decode_floats` does.
        """
        size = len(latents) if self.device.type != "cpu" else max(1, CACHED_PIXELS // self.image_size**2)
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
        part = "autoencoder" if whole[0].all() else "U-Net"
        dtype = str(self.pipeline.vae.dtype if part == "autoencoder" else self.dtype).removeprefix("torch.")
        advice = (
            "its weights or those of the LoRA are damaged, or the training rate was too high"
            if dtype == "float32"
            else "its values are too large for it: use --dtype float32 or bfloat16"
            if dtype == "float16"
            else "use --dtype float32; if that gives NaN too, weights are damaged"
        )
        rows = (~whole.all(0)).nonzero().flatten().tolist()
        raise NotFiniteError(f"the model's {part} gives NaN or infinity in {dtype}; {advice}", tuple(rows))

    def _scale(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics(latents)
        return (latents - mean) * float(self.pipeline.vae.config.scaling_factor) / std

    def _unscale(self, latents: Tensor) -> Tensor:
        mean, std = self._latent_statistics(latents)
        return latents * std / float(self.pipeline.vae.config.scaling_factor) + mean

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipeline.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        # Only SDXL's pipeline heeds them.
        if not is_sdxl(self.pipeline) or mean is None or std is None:
            return latents.new_zeros(()), latents.new_ones(())
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return mean, std
