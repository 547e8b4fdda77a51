"""A teacher's predicted images as the target of the policy's own, beside whatever objective trains.

Latents of a model call are α x₀ + σ ε, and whatever a denoiser predicts of them stands for an image x₀
(`core.denoising.find_image`). The term is

    weight · mean ‖x₀(policy) − x₀(teacher)‖²

over the calls that are trained, each at the latents that the policy is fed there, and over the values of latents. The
teacher is the model before any training, or another pipeline of the same latents, asked at the same ratio of noise to
image (its time may be another), with texts as its own encoder reads them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlcm_cli.config import Config
from rlcm_cli.core.denoising import find_image
from rlcm_cli.learning.loss_scale import LossScale
from rlcm_cli.learning.renoising import find_noise_levels, find_output, time_scale
from rlcm_cli.learning.replay import pick_conditioning, predict_output
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.models.latent_model import LatentModel

if TYPE_CHECKING:
    from rlcm_cli.learning.learner import Learner

TOLERANCE = 16.0
"""Mean difference of pixels, of 255, up to which two autoencoders are of one space: roundings of the weights and
decoders that were fine-tuned are below, other spaces and other scales far above."""


@dataclass(frozen=True)
class Teacher:
    """Whose predicted images the policy's are drawn towards in an iteration."""

    model: LatentModel
    """The policy's own, or another; what is trained of it is switched off."""
    weight: float
    guidance_scale: float
    timesteps_H: Tensor
    """Its model times at the schedule's calls."""
    conditioning: Mapping[str, Tensor]
    """Name → [U, …]."""
    conditioning_index: Tensor
    """int64 [B], row of each sample."""

    @torch.no_grad()
    def predict_image(self, latents_NCHW: Tensor, calls_N: Tensor, samples_N: Tensor) -> Tensor:
        """Predict the images x₀ of samples at latents of model calls, float32 [N, C, h, w], on the model's device."""
        model = self.model
        picked = self.conditioning_index[samples_N.cpu()]
        conditioning = {name: table[picked].to(model.device) for name, table in self.conditioning.items()}
        timesteps = self.timesteps_H[calls_N.cpu()]
        with model.attached.base_model(model) if model.attached else contextlib.nullcontext():
            output = model.predict(latents_NCHW, timesteps.to(model.device), conditioning, self.guidance_scale)
        return predict_image(model, latents_NCHW, timesteps, output)

    def measure_distance(
        self,
        policy: LatentModel,
        rollout: Rollout,
        output: Tensor,
        latents: Tensor,
        calls_N: Tensor,
        samples_N: Tensor,
    ) -> Tensor:
        """Return the mean squared difference of the predicted images, float32 [N].

        Args:
            policy: The model that is trained.
            rollout: Its samples.
            output: What it predicts, [N, C, h, w]; the gradient goes back through it.
            latents: What it was fed, [N, C, h, w].
            calls_N: int64, the model calls 0 … H − 1 at whose times it was.
            samples_N: int64, rows of the rollout.
        """
        own = predict_image(policy, latents, rollout.schedule.timesteps[calls_N.cpu()], output)
        return (own - self.predict_image(latents, calls_N, samples_N)).square().flatten(1).mean(1)


def predict_image(model: LatentModel, latents: Tensor, timesteps_N: Tensor, output: Tensor) -> Tensor:
    """Return the images x₀ that a model's outputs stand for at its times, float32 (float64 stays) [N, C, h, w]."""
    alpha, sigma = (level.to(output.device).view(-1, 1, 1, 1) for level in find_noise_levels(model, timesteps_N.cpu()))
    dtype = torch.promote_types(output.dtype, torch.float32)
    return find_image(find_output(model), latents.to(dtype), output.to(dtype), alpha.to(dtype), sigma.to(dtype))


def choose_teacher(
    config: Config, model: LatentModel, rollout: Rollout, pipeline: LatentModel | None
) -> Teacher | None:
    """Return the teacher of an iteration, None where the configuration has none.

    `pipeline`: what `teacher.source` names, if it is not the base model.
    """
    settings = config.teacher
    if not settings.weight:
        return None
    asked, drawn = settings.guidance_scale, rollout.manifest.schedule.guidance_scale
    guidance = drawn if asked is None else asked
    if pipeline is None:
        times, tables = rollout.schedule.timesteps, rollout.conditioning
        return Teacher(model, settings.weight, guidance, times, tables, rollout.conditioning_index)
    times = match_times(model, pipeline, rollout.schedule.timesteps)
    return Teacher(pipeline, settings.weight, guidance, times, *encode_prompts(pipeline, rollout))


def encode_prompts(teacher: LatentModel, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor]:
    """Encode the prompts of a rollout with a teacher: name → [U, …], and the row of each sample, int64 [B]."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(rollout.prompts))}
    return teacher.encode_prompts(list(rows)), torch.tensor([rows[prompt] for prompt in rollout.prompts])


def accumulate_last_distance(learner: Learner, samples_M: Tensor) -> dict[str, Tensor]:
    """Add the gradient of the term at the last calls, which a reward is back-propagated through.

    Each call is taken by itself, at the latents that were drawn: a mean over these calls, in addition to that over
    the actions. Returns `last_teacher_distance`.
    """
    teacher, model, rollout = learner.teacher, learner.model, learner.rollout
    if teacher is None:
        return {}
    calls, states = learner.config.last_step.calls, rollout.trajectories.latents_BSCHW
    count = calls * len(samples_M)
    scale = LossScale(model, count * states[0, 0].numel())
    total = torch.zeros(())

    def compute(rows: Tensor) -> tuple[Tensor, None, Tensor]:
        samples, last = samples_M[rows % len(samples_M)], rows // len(samples_M)
        latents = states[samples, last - calls].to(model.device)
        calls_N = (rollout.schedule.steps - calls + last).to(model.device)
        output = predict_output(model, rollout, latents, calls_N, pick_conditioning(model, rollout, samples))
        distance = teacher.measure_distance(model, rollout, output, latents, calls_N, samples).sum() / count
        return teacher.weight * distance, None, distance.detach().cpu()

    own, size = learner.processes.part(count), learner.config.runtime.micro_batch_size
    for first in own[::size]:
        rows = torch.arange(first, min(first + size, own.stop))
        total += scale.add_gradient(functools.partial(compute, rows))
    return {"last_teacher_distance": total, **scale.metrics()}


def match_times(policy: LatentModel, teacher: LatentModel, timesteps: Tensor) -> Tensor:
    """Return the times at which a teacher sees as much noise in its latents as the policy does at its own, [H].

    Raises `ValueError` where the teacher knows no such time.
    """
    if policy.sampler.levels != "alpha_bar":
        own, others = time_scale(policy), time_scale(teacher)
        return timesteps if own == others else timesteps * (others / own)
    own_levels, levels = policy.alphas_cumprod.double(), teacher.alphas_cumprod.double()
    if torch.equal(own_levels, levels):
        return timesteps
    alpha = find_noise_levels(policy, timesteps)[0].double()
    wanted = alpha**2
    slack = 1e-6  # the levels are float32
    if (wanted < levels[-1] * (1 - slack)).any() or (wanted > levels[0] * (1 + slack)).any():
        raise ValueError(
            f"was trained with noise levels (ᾱ) from {levels[-1]:.2g} to {levels[0]:.4g}, and the model's calls are "
            f"at {wanted.min():.2g} to {wanted.max():.4g}"
        )
    above = torch.searchsorted(-levels, -wanted).clamp(1, len(levels) - 1)
    upper, lower = levels[above - 1], levels[above]
    return (above - 1) + ((upper - wanted) / (upper - lower)).clamp(0, 1)


def find_misfit(policy: LatentModel, teacher: LatentModel, timesteps: Tensor) -> str | None:
    """Return why a teacher predicts no image of the policy's latents, as the rest of a sentence; None: it does."""
    if teacher.latent_shape != policy.latent_shape:
        shapes = [" x ".join(map(str, model.latent_shape)) for model in (teacher, policy)]
        return f"has latents of {shapes[0]} (channels, height, width), and the model that is trained {shapes[1]}"
    levels = teacher.sampler.levels, policy.sampler.levels
    # Flow matching's σ and the circle's τ are the share of noise in what a model is fed.
    if levels[0] != levels[1] and "alpha_bar" in levels:
        return f"has noise levels of another kind ({levels[0]}) than the model that is trained ({levels[1]})"
    if not _share_latents(policy, teacher):
        return "has an autoencoder that decodes the latents of the model that is trained to other images"
    try:
        match_times(policy, teacher, timesteps)
    except ValueError as fault:
        return str(fault)
    return None


@torch.no_grad()
def _share_latents(policy: LatentModel, teacher: LatentModel) -> bool:
    """Return whether both decode latents of a picture alike: a ramp of each colour, and a cross."""
    height, width = policy.image_size
    down, across = (torch.linspace(0, 255, side) for side in (height, width))
    picture = torch.stack(
        [down[:, None].expand(height, width), across.expand(height, width), 255 - down[:, None] * across / 255]
    )
    picture[:, height // 2 - height // 8 : height // 2 + height // 8] = 240
    picture[:, :, width // 2 - width // 8 : width // 2 + width // 8] = 30
    latents = policy.encode_images(picture[None].to(torch.uint8))
    images = [model.decode_floats(latents.to(model.device)).cpu() for model in (policy, teacher)]
    return (images[0] - images[1]).abs().mean().item() <= TOLERANCE
