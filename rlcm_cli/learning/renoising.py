"""Drawn images noised again, at times of the sampler's model calls: what losses that denoise are taken on.

Times and noise belong to the run, the iteration, the inner epoch and the sample, so that they depend on neither the
batch nor the device, and a resumed run draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.core.denoising import OutputType, choose_target
from rlcm_cli.core.noise import derive_seed, draw_noise, seed_generator
from rlcm_cli.learning.replay import pick_conditioning
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel


@dataclass(frozen=True)
class NoisedImages:
    """N final latents with noise, on the model's device, and what a denoiser should make of them."""

    latents_NCHW: Tensor
    """In the model's dtype."""
    timesteps_N: Tensor
    """Model times."""
    conditioning: dict[str, Tensor]
    target_NCHW: Tensor
    """Of the denoiser's output, float32."""
    levels_N: Tensor
    """How much of each is noise: 0 … 1, float32; of flow matching its σ."""


def draw_calls(rollout: Rollout, epoch: int, samples_M: Tensor, count: int) -> Tensor:
    """Choose `count` of the H model calls for each sample, whose times it is noised at, int64 [M, count].

    No call twice: all, where there are no more.
    """
    manifest, steps = rollout.manifest, rollout.schedule.steps
    rows = []
    for sample in samples_M.tolist():
        seed = derive_seed(manifest.run_seed, "noise times", manifest.iteration, epoch, sample)
        rows.append(torch.randperm(steps, generator=seed_generator(seed))[:count])
    return torch.stack(rows)


def noise_again(
    model: LatentModel, rollout: Rollout, epoch: int, samples_N: Tensor, calls_N: Tensor, owners_N: Tensor
) -> NoisedImages:
    """Noise the final latents of samples at the times of model calls.

    Args:
        model: Whose noise it is.
        rollout: With final latents.
        epoch: The inner epoch, from 0: each draws new noise.
        samples_N: int64, rows of the rollout.
        calls_N: int64, model calls 0 … H − 1.
        owners_N: int64, the samples that the noise belongs to: as a rule the same; those of a pair share it.
    """
    if rollout.final_latents is None:
        raise RuntimeError("the objective does not state Need.FINAL_LATENTS, so that they were not stored")
    manifest = rollout.manifest
    seeds = [
        derive_seed(manifest.run_seed, "fresh noise", manifest.iteration, epoch, owner, call)
        for owner, call in zip(owners_N.tolist(), calls_N.tolist(), strict=True)
    ]
    noise = draw_noise(seeds, 1, model.latent_shape)[:, 0].to(model.device)
    images = rollout.final_latents[samples_N].to(model.device).float()
    timesteps = rollout.schedule.timesteps[calls_N]
    alpha, sigma = (part.to(model.device) for part in find_noise_levels(model, timesteps))
    of_image, of_noise = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    return NoisedImages(
        latents_NCHW=(of_image * images + of_noise * noise).to(model.dtype),
        timesteps_N=timesteps.to(model.device),
        conditioning=pick_conditioning(model, rollout, samples_N),
        target_NCHW=choose_target(find_output(model), images, noise, of_image, of_noise),
        levels_N=sigma / (alpha + sigma),
    )


def find_noise_levels(model: LatentModel, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of image and noise in what the model is fed at times [N], float32 [N] each.

    √ᾱ and √(1 − ᾱ) of diffusion, with ᾱ in between where a time is not whole; 1 − σ and σ of flow matching, and so
    with the τ of consistency models on the circle, which are fed the same (`samplers.scm`).
    """
    if model.sampler.levels == "alpha_bar":
        levels = model.alphas_cumprod.double()
        lower = timesteps.floor().long()
        upper, share = (lower + 1).clamp(max=len(levels) - 1), timesteps - lower
        alpha_bar = levels[lower] * (1 - share) + levels[upper] * share
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
    sigma = timesteps.double() / time_scale(model)
    return (1 - sigma).float(), sigma.float()


def time_scale(model: LatentModel) -> float:
    """Return the time of pure noise of a flow matching model, or of a consistency model on the circle."""
    return float(model.noise.scheduler["num_train_timesteps"]) if model.sampler.levels == "sigma" else 1.0


def find_output(model: LatentModel) -> OutputType:
    """Return what the denoiser predicts."""
    return model.prediction_type if model.sampler.levels == "alpha_bar" else "velocity"
