"""The loss of the model's own training on real images with captions, in addition to the objective.

Pinterest's regulariser against forgetting (arXiv 2401.12244): as in their published code, the noise prediction of
images at timesteps drawn evenly, each with its caption, none of which is dropped. Theirs is one optimizer step of its
own an iteration, after its samples are drawn and before the five of the objective: that is `own_steps` 1. By default
both gradients are one step, so that `weight` says how they compare.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcm_cli.config import PretrainingSettings
from rlcm_cli.core.denoising import add_noise, denoising_error
from rlcm_cli.core.noise import derive_seed, seed_generator
from rlcm_cli.learning.loss_scale import LossScale
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.processes.job import Processes
from rlcm_cli.prompts.pairs import Pairs


def accumulate_pretraining(
    model: LatentModel,
    pairs: Pairs,
    settings: PretrainingSettings,
    seed: int,
    *,
    micro_batch_size: int,
    processes: Processes = Processes(),
) -> dict[str, Tensor]:
    """Add the gradient of the pretraining loss to the adapter's, and return its metrics.

    Args:
        model: With the adapter.
        pairs: Real images with captions.
        settings: Weight and batch size.
        seed: Decides which images, timesteps and noise (`step_seed`).
        micro_batch_size: Images in one forward and backward pass.
        processes: Of several processes, each adds and measures its part of the images.

    Returns:
        `pretraining_loss`: the mean squared error, unweighted.
    """
    generator = seed_generator(seed)
    chosen = torch.randint(len(pairs), (settings.batch_size,), generator=generator)
    timesteps = torch.randint(len(model.alphas_cumprod), (settings.batch_size,), generator=generator)
    noise = torch.randn(settings.batch_size, *model.latent_shape, generator=generator)
    scale = LossScale(model, noise.numel())
    mean_loss = torch.zeros(())

    def compute(rows: slice) -> tuple[Tensor, None, Tensor]:
        images, captions = pairs.take(chosen[rows].tolist())
        error = _denoise(model, images, captions, timesteps[rows], noise[rows])
        loss = error.sum() / settings.batch_size
        return settings.weight * loss, None, loss.detach().cpu()

    own = processes.part(settings.batch_size)
    for first in own[::micro_batch_size]:
        rows = slice(first, min(first + micro_batch_size, own.stop))
        mean_loss += scale.add_gradient(functools.partial(compute, rows))
    return {"pretraining_loss": mean_loss, **scale.metrics()}


def step_seed(run_seed: int, iteration: int, step: int) -> int:
    """Seed of the images and noise of an optimizer step."""
    return derive_seed(run_seed, "pretraining", iteration, step)


def _denoise(model: LatentModel, images: list[Any], captions: list[str], timesteps: Tensor, noise: Tensor) -> Tensor:
    """Return the error of each image, float32 [B]; timesteps int64 [B], noise float32 [B, C, h, w]."""
    pixels = torch.stack([fit_image(image, *model.image_size) for image in images])
    latents = model.encode_images(pixels).float()
    alpha_bar = model.alphas_cumprod[timesteps].to(model.device)
    noise, timesteps = noise.to(model.device), timesteps.to(model.device)
    conditioning = {name: table.to(model.device) for name, table in model.encode_prompts(captions).items()}
    noised = add_noise(latents, noise, alpha_bar).to(model.dtype)
    # Without guidance: it is made of two predictions, and each was trained by itself.
    prediction = model.predict(noised, timesteps, conditioning, guidance_scale=1.0)
    return denoising_error(prediction, latents, noise, alpha_bar, model.prediction_type)


def fit_image(image: Any, height: int, width: int) -> Tensor:
    """Resize a picture of Pillow's and crop its middle, uint8 [3, height, width]."""
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(image.convert("RGB"), (width, height), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
