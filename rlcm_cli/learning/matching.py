"""Distribution matching: the policy's images towards those that a teacher of many steps would draw.

The term of DMDR (arXiv 2511.13649) and RTDMD (arXiv 2605.26108), after DMD2 (arXiv 2405.14867). The image x₀ that the
policy predicts is noised again at a level drawn at random, and denoised twice: by the teacher, and by the teacher with
a LoRA that is trained, along with the policy, to denoise the policy's own images (the fake score). The difference is
the gradient by x₀ (`core.matching`); it draws towards where the teacher's images are, not towards their mean.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlcm_cli.config import Config, MatchingSettings
from rlcm_cli.core.denoising import choose_target
from rlcm_cli.core.matching import matching_gradient
from rlcm_cli.core.noise import derive_seed, seed_generator
from rlcm_cli.learning.learner import Learner
from rlcm_cli.learning.loss_scale import LossScale
from rlcm_cli.learning.optimizer import clip_gradient, sum_gradients
from rlcm_cli.learning.renoising import find_noise_levels, find_output
from rlcm_cli.learning.replay import pick_conditioning, predict_output
from rlcm_cli.learning.rollout import Rollout
from rlcm_cli.learning.teacher import encode_prompts, predict_image
from rlcm_cli.models.latent_model import LatentModel

LEAST, MOST = 0.02, 0.98
"""Of the teacher's training times, those at which it is asked, as in DMD2: the ends tell little."""


@dataclass(frozen=True)
class FakeScore:
    """A teacher with a LoRA that denoises the policy's images; without the LoRA it is the teacher again."""

    model: LatentModel
    parameters: Mapping[str, torch.nn.Parameter]
    """Of the LoRA."""
    optimizer: torch.optim.Optimizer

    @property
    def steps(self) -> int:
        """Optimizer steps that it has taken, in this process and before."""
        return max((int(state["step"]) for state in self.optimizer.state.values()), default=0)


@dataclass(frozen=True)
class Matching:
    """What the policy's images are matched with in an iteration."""

    settings: MatchingSettings
    fake: FakeScore
    guidance_scale: float
    """Of the teacher; the fake score has none."""
    conditioning: Mapping[str, Tensor]
    """Of the teacher's text encoder, name → [U, …]."""
    conditioning_index: Tensor
    """int64 [B], row of each sample."""

    def pick(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the conditioning of samples, on the device."""
        picked = self.conditioning_index[samples]
        return {name: table[picked].to(self.fake.model.device) for name, table in self.conditioning.items()}


@dataclass(frozen=True)
class Noised:
    """Images x₀ with noise, as the teacher is fed them."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    """Of the teacher's output, float32."""
    conditioning: dict[str, Tensor]


def start_matching(config: Config, rollout: Rollout, fake: FakeScore) -> Matching:
    """Return what the images of an iteration are matched with."""
    asked, drawn = config.teacher.guidance_scale, rollout.manifest.schedule.guidance_scale
    tables, index = encode_prompts(fake.model, rollout)
    return Matching(config.matching, fake, drawn if asked is None else asked, tables, index)


def accumulate_matching(learner: Learner, matching: Matching, samples_M: Tensor, seed: int) -> dict[str, Tensor]:
    """Add the gradient of the term to the trained weights', and let the fake score take its own steps.

    These come afterwards, on the images that the policy predicted. Until the fake score has taken `warmup_steps`, the
    policy has no gradient of it. Of several processes, each takes a part of the samples.

    Args:
        learner: Whose policy is trained.
        matching: With the fake score.
        samples_M: The samples of the optimizer step, int64 [M], rows of the rollout.
        seed: Decides calls, noise levels and noise.

    Returns:
        `matching_distance`, the mean |fake − real| as latents (absent in the warm-up), and `fake_score_loss`.
    """
    model, settings = learner.model, matching.settings
    generator = seed_generator(derive_seed(seed, "matching"))
    calls_M = _draw_calls(learner.rollout, settings, len(samples_M), generator)
    drawn = _draw_noise(matching, len(samples_M), generator)
    learns = matching.fake.steps >= settings.warmup_steps
    scale = LossScale(model, len(samples_M) * drawn[1][0].numel())
    own, size = learner.processes.part(len(samples_M)), learner.config.runtime.micro_batch_size
    images, distance = torch.zeros(len(samples_M), *model.latent_shape), torch.zeros(())

    def compute(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        image = _predict(learner, samples_M[rows], calls_M[rows])
        images[rows] = image.detach().cpu()
        noised = _add_noise(matching, image.detach(), samples_M[rows], drawn[0][rows], drawn[1][rows])
        real, fake = (_denoise(matching, noised, real=is_real) for is_real in (True, False))
        gradient = matching_gradient(image.detach(), real, fake)
        share = settings.weight / (len(samples_M) * image[0].numel())
        return image, share * gradient, (fake - real).abs().mean().cpu()

    for first in own[::size]:
        rows = slice(first, min(first + size, own.stop))
        if learns:
            part = (rows.stop - first) / len(samples_M)
            distance += part * scale.add_gradient(functools.partial(compute, rows))
        else:
            with torch.no_grad():
                images[rows] = _predict(learner, samples_M[rows], calls_M[rows]).cpu()
    found = {"matching_distance": distance, **scale.metrics()} if learns else {}
    losses = [_step_fake(learner, matching, images, samples_M, generator) for _ in range(settings.steps)]
    return {**found, "fake_score_loss": torch.stack(losses).mean()}


def _predict(learner: Learner, samples: Tensor, calls: Tensor) -> Tensor:
    """Return the images x₀ that the policy predicts at model calls of stored trajectories, float32."""
    model, rollout = learner.model, learner.rollout
    recorded = torch.tensor(rollout.schedule.recorded_calls)
    states = rollout.trajectories.latents_BSCHW[samples, torch.searchsorted(recorded, calls)].to(model.device)
    conditioning = pick_conditioning(model, rollout, samples)
    output = predict_output(model, rollout, states, calls.to(model.device), conditioning)
    return predict_image(model, states, rollout.schedule.timesteps[calls], output)


def _draw_calls(rollout: Rollout, settings: MatchingSettings, count: int, generator: torch.Generator) -> Tensor:
    """Return a model call for each sample whose latents are stored, int64 [M]."""
    last = rollout.schedule.steps - 1
    stored = torch.tensor([call for call in rollout.schedule.recorded_calls if call <= last])
    chosen = stored[torch.randint(len(stored), (count,), generator=generator)]
    return chosen if settings.calls == "any" else torch.full((count,), last)


def _draw_noise(
    matching: Matching, count: int, generator: torch.Generator, *, fake: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw the teacher's times [M] and noise [M, C, h, w]; those that the fake score is trained at are even."""
    model, settings = matching.fake.model, matching.settings
    if settings.times == "logit-normal" and not fake:
        share = torch.randn(count, generator=generator).sigmoid().clamp(LEAST, MOST)
    else:
        share = LEAST + (MOST - LEAST) * torch.rand(count, generator=generator)
    noise = torch.randn(count, *model.latent_shape, generator=generator)
    if model.sampler.levels == "alpha_bar":
        return (share * (len(model.alphas_cumprod) - 1)).round().long(), noise
    scale = float(model.noise.scheduler["num_train_timesteps"]) if model.sampler.levels == "sigma" else 1.0
    return share.double() * scale, noise


def _add_noise(matching: Matching, images: Tensor, samples: Tensor, times: Tensor, noise: Tensor) -> Noised:
    model = matching.fake.model
    alpha, sigma = (level.to(model.device).view(-1, 1, 1, 1) for level in find_noise_levels(model, times))
    images, noise = images.to(model.device), noise.to(model.device)
    return Noised(
        (alpha * images + sigma * noise).to(model.dtype),
        times,
        choose_target(find_output(model), images, noise, alpha, sigma),
        matching.pick(samples),
    )


@torch.no_grad()
def _denoise(matching: Matching, noised: Noised, *, real: bool) -> Tensor:
    """Return the images that the teacher (`real`) or the fake score makes of noised ones, float32."""
    model, times = matching.fake.model, noised.timesteps.to(matching.fake.model.device)
    if real:
        with model.trained.base_model(model):
            output = model.predict(noised.latents, times, noised.conditioning, matching.guidance_scale)
    else:
        output = model.predict(noised.latents, times, noised.conditioning, 1.0)
    return predict_image(model, noised.latents, noised.timesteps, output)


def _step_fake(
    learner: Learner, matching: Matching, images: Tensor, samples_M: Tensor, generator: torch.Generator
) -> Tensor:
    """Take an optimizer step of the fake score: its loss of denoising the policy's images, which is returned."""
    fake, count = matching.fake, len(samples_M)
    times, noise = _draw_noise(matching, count, generator, fake=True)
    fake.optimizer.zero_grad(set_to_none=True)
    scale, total = LossScale(fake.model, noise.numel()), torch.zeros(())
    fake.model.adapter_digest = None  # from now on it is no file's

    def compute(rows: slice) -> tuple[Tensor, None, Tensor]:
        noised = _add_noise(matching, images[rows], samples_M[rows], times[rows], noise[rows])
        output = fake.model.predict(noised.latents, noised.timesteps.to(fake.model.device), noised.conditioning, 1.0)
        loss = (output.float() - noised.target).square().flatten(1).mean(1).sum() / count
        return loss, None, loss.detach().cpu()

    own, size = learner.processes.part(count), learner.config.runtime.micro_batch_size
    for first in own[::size]:
        total += scale.add_gradient(functools.partial(compute, slice(first, min(first + size, own.stop))))
    sum_gradients(fake.parameters.values(), learner.processes)
    clip_gradient(fake.parameters.values(), learner.config.train)
    fake.optimizer.step()
    return total
