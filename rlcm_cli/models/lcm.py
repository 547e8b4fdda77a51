"""A latent consistency model: diffusers' pipeline behind encode, predict and decode."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlcm_cli.core.device import select_device
from rlcm_cli.core.digests import digest_tensors
from rlcm_cli.core.lcm import NoiseSchedule, PredictionType, Spacing, lcm_schedule, lcm_timesteps
from rlcm_cli.errors import ConfigError, ModelError
from rlcm_cli.models.embedded import embedded_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class ConsistencyModel:
    """A loaded pipeline, frozen but for the adapter that may be attached to its U-Net."""

    pipeline: Any
    """`diffusers.LatentConsistencyModelPipeline`."""
    device: torch.device
    dtype: torch.dtype
    digest: str
    """SHA-256 over all that makes an image of a prompt and noise: weights as loaded, and the scheduler's settings."""
    adapter_digest: str | None = None
    """Digest of the LoRA file whose weights are in the U-Net."""
    _embeddings: dict[str, Tensor] = field(default_factory=dict)

    @property
    def unet(self) -> Any:
        """The U-Net, `UNet2DConditionModel`."""
        return self.pipeline.unet

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def image_size(self) -> int:
        """Pixels along each side of an image."""
        return int(self.unet.config.sample_size * self.pipeline.vae_scale_factor)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of the pipeline's training schedule, float32 [train steps], on the CPU."""
        return cast("Tensor", self.pipeline.scheduler.alphas_cumprod.cpu())

    def schedule(self, steps: int, *, original_steps: int, spacing: Spacing) -> NoiseSchedule:
        """Build the sampler's schedule from the pipeline's own noise levels.

        Raises `ConfigError` where the distillation's schedule is longer than the training's.
        """
        config = self.pipeline.scheduler.config
        if original_steps > config.num_train_timesteps:
            raise ConfigError(
                f"sample.original_steps is {original_steps}, more than the {config.num_train_timesteps} timesteps of "
                "the model's training; latent consistency models are distilled with 50"
            )
        timesteps = lcm_timesteps(
            steps, original_steps=original_steps, train_steps=config.num_train_timesteps, spacing=spacing
        )
        return lcm_schedule(
            self.alphas_cumprod,
            timesteps,
            cast("PredictionType", config.prediction_type),
            float(config.timestep_scaling),
        )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode prompts: `prompt_embeds` in the model's dtype [U, tokens, width], on the CPU.

        One prompt a call, so that an embedding's bytes do not depend on the prompts beside it.
        """
        for prompt in prompts:
            if prompt not in self._embeddings:
                embeds, _ = self.pipeline.encode_prompt(prompt, self.device, 1, False)
                self._embeddings[prompt] = embeds[0].to("cpu", self.dtype)
        return {"prompt_embeds": torch.stack([self._embeddings[prompt] for prompt in prompts])}

    def predict(
        self, latents: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor], guidance_scale: float
    ) -> Tensor:
        """Call the U-Net: latents [B, C, h, w], timesteps int64 [B], conditioning [B, …] → [B, C, h, w].

        Guidance is distilled into the U-Net as the embedding of w = guidance_scale − 1.
        """
        w = torch.full((len(latents),), guidance_scale - 1)
        embedding = self.pipeline.get_guidance_scale_embedding(w, self.unet.config.time_cond_proj_dim)
        output = self.unet(
            latents,
            timesteps,
            timestep_cond=embedding.to(self.device, self.dtype),
            encoder_hidden_states=conditioning["prompt_embeds"],
            return_dict=False,
        )[0]
        return cast("Tensor", output)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, uint8 [B, 3, H, W] on the CPU, rounded as diffusers does."""
        vae = self.pipeline.vae
        images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        pixels: Tensor = (images.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        return pixels


def load_model(name: str, *, revision: str | None, dtype: str, device: str) -> ConsistencyModel:
    """Load the embedded model, a local pipeline folder or a hub id; the U-Net comes frozen and in eval mode.

    Raises `ModelError` for what is not there, cannot be reached, or is no latent consistency model.
    """
    folder = embedded_folder(name)
    source = str(folder) if folder else name
    place = select_device(device)
    with quiet_libraries(), _explained(name):
        from diffusers import LatentConsistencyModelPipeline, LCMScheduler

        index = LatentConsistencyModelPipeline.load_config(source, revision=revision)
        settings = {}
        if index.get("scheduler", [None, None])[1] != "LCMScheduler":
            # Early revisions of LCM_Dreamshaper_v7 state none, and plain SD folders state another.
            settings["scheduler"] = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        pipeline = LatentConsistencyModelPipeline.from_pretrained(
            source,
            revision=revision,
            torch_dtype=DTYPES[dtype],
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            **settings,
        )
    if not pipeline.unet.config.time_cond_proj_dim:
        raise ModelError(
            f"{name}: is no latent consistency model, its U-Net has no guidance embedding (time_cond_proj_dim); "
            "use an LCM such as SimianLuo/LCM_Dreamshaper_v7, or the embedded emoji-lcm"
        )
    scheduler = pipeline.scheduler.config
    if scheduler.get("clip_sample") or scheduler.get("thresholding"):
        raise ModelError(
            f"{name}: its scheduler clips or thresholds predictions, so its samples follow no Gaussian policy; "
            "set clip_sample and thresholding to false in scheduler/scheduler_config.json"
        )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        lacking = [key for key, parameter in module.named_parameters() if parameter.is_meta]
        if lacking:
            raise ModelError(
                f"{name}: the weights of its {type(module).__name__} lack '{lacking[0]}'; get the model's files anew"
            )
        module.requires_grad_(False)
        module.eval()
    digest = _digest_pipeline(pipeline)
    with quiet_libraries():
        pipeline.to(place)
    return ConsistencyModel(pipeline, place, DTYPES[dtype], digest)


def _digest_pipeline(pipeline: Any) -> str:
    weights = {
        f"{part}.{name}": tensor
        for part in ("unet", "vae", "text_encoder")
        for name, tensor in getattr(pipeline, part).state_dict().items()
    }
    # Names with an underscore say which diffusers wrote the file.
    settings = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    return digest_tensors(weights, settings)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence what the libraries log at each load of a small pipeline, none of which a user can act on."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    loggings = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in loggings]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in loggings:
            library.set_verbosity_error()
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library, level in zip(loggings, levels, strict=True):
                library.set_verbosity(level)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if Path(name).exists():
            raise ModelError(
                f"{name}: is no diffusers pipeline of a latent consistency model ({reason[:200]}); "
                "it needs model_index.json, unet, vae, text_encoder, tokenizer, all with safetensors weights"
            ) from error
        raise ModelError(
            f"model '{name}' is no local folder and could not be loaded from the hub ({reason[:200]}); check the "
            "name and the network, or use the embedded model: --model emoji-lcm"
        ) from error
