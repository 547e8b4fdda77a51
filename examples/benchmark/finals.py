"""What is measured of the policy that a run ends with, beside its rewards: how much was paid for them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from examples.benchmark.classifier import extract_features, recognise
from rlcm_cli.core.gaussian import gaussian_kl
from rlcm_cli.core.schedule import Schedule, transition
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.evaluate import PlannedImage, plan_evaluation
from rlcm_cli.phases.sample import Drawn, draw_batch
from rlcm_cli.phases.score import Scorer, load_scorers
from rlcm_cli.rewards import RewardSpec, load_reward
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.store.evaluations import read_evaluation

SECOND_JUDGE = "emoji_clip"
STEPS = (1, 2, 4, 8)
NEIGHBOURS = 5
"""Of an image of the base model, that set the radius of its ball; k of `coverage`."""


def measure_finals(run: Run, model: LatentModel, *, few_steps: bool = True) -> dict[str, Any]:
    """Measure the policy of a run's last checkpoint, which `model` holds.

    - `second_judge`, `diversity`: of the fixed images of the first checkpoint and of the last one.
    - `coverage`: of the base model's images of the same prompts and other seeds, by the last checkpoint's; beside it
      that of the first checkpoint's, which is what there is to be had.
    - `kl`: of trajectories to the base model, in nats per value of the latents.
    - `steps`: the measures of `measure_images`, drawn in so many steps; two images a prompt.
    """
    first, last = (read_evaluation(run.layout, run.layout.evaluations()[place]) for place in (0, -1))
    images = [torch.from_numpy(one.images) for one in (first, last)]
    plan = plan_evaluation(run.config, run.prompts)
    prompts = [fixed.prompt for fixed in plan]
    judge = load_reward(RewardSpec(SECOND_JUDGE))
    schedule = drawing_schedule(run.config.sampler, run.config.sample.steps, model)
    with model.trained.base_model(model):
        others = torch.cat([drawn.images for _, drawn in _draw(run, model, schedule, plan, seed_shift=1)])
    features = [extract_features(drawn) for drawn in images]
    base = extract_features(others)
    return {
        "second_judge": [judge.score(drawn, prompts, [{}] * len(drawn)).mean().item() for drawn in images],
        "diversity": [pairwise_distance(own, prompts) for own in features],
        "coverage": [coverage(base, own) for own in features],
        "kl": trajectory_kl(run, model, schedule, plan),
        "steps": {str(steps): measure_steps(run, model, plan, steps) for steps in STEPS} if few_steps else {},
    }


def pairwise_distance(features: Tensor, prompts: Sequence[str]) -> float:
    """Return the mean cosine distance of two images of one prompt; features are float32 [B, F]."""
    directions = torch.nn.functional.normalize(features, dim=1)
    means = []
    for prompt in dict.fromkeys(prompts):
        own = directions[[row for row, other in enumerate(prompts) if other == prompt]]
        count = len(own)
        if count > 1:
            means.append(((count**2 - (own @ own.T).sum()) / (count * (count - 1))).item())
    return statistics.fmean(means)


def coverage(base: Tensor, features: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return the share of the base's images with an image of the policy in their ball (arXiv 2002.09797, equation 5).

    Features are float32 [B, F]; the ball of an image of the base reaches to its k-th neighbour among the base's.
    """
    among = torch.cdist(base, base).fill_diagonal_(float("inf"))
    radius = among.kthvalue(neighbours, dim=1).values
    return (torch.cdist(base, features).amin(1) <= radius).float().mean().item()


def trajectory_kl(run: Run, model: LatentModel, schedule: Schedule, plan: Sequence[PlannedImage]) -> float:
    """Return KL(policy ‖ base) of whole trajectories, over the policy's own, in nats per value of the latents."""
    total, guidance = 0.0, run.config.sample.guidance_scale
    for part, drawn in _draw(run, model, schedule, plan):
        trajectories = drawn.trajectories
        conditioning = model.encode_prompts([fixed.prompt for fixed in part])
        for position, call in zip(trajectories.positions.tolist(), trajectories.calls_A.tolist(), strict=True):
            states = trajectories.latents_BSCHW[:, position]
            calls = torch.full((len(part),), call)
            timesteps = schedule.timesteps[calls]
            with torch.no_grad():
                own = transition(schedule, model.predict(states, timesteps, conditioning, guidance), states, calls)
                with model.trained.base_model(model):
                    output = model.predict(states, timesteps, conditioning, guidance)
                base = transition(schedule, output, states, calls)
            total += gaussian_kl(own.mean, base.mean, own.std, "mean").sum().item()
    return total / len(plan)


def measure_steps(run: Run, model: LatentModel, plan: Sequence[PlannedImage], steps: int) -> dict[str, float]:
    """Measure what the policy draws in a number of steps: the fixed images, two of a prompt."""
    places = run.config.evaluate.images_per_prompt
    chosen = [fixed for number, fixed in enumerate(plan) if number % places < 2]
    schedule = drawing_schedule(run.config.sampler, steps, model)
    images = torch.cat([drawn.images for _, drawn in _draw(run, model, schedule, chosen)])
    return measure_images(images, [fixed.prompt for fixed in chosen], load_scorers(run))


def measure_images(images: Tensor, prompts: Sequence[str], scorers: dict[str, Scorer]) -> dict[str, float]:
    """Return the mean size as a JPEG, the share that is recognised, and the mean of each reward."""
    return {
        "kilobytes": statistics.fmean(map(jpeg_kilobytes, images)),
        "recognised": recognise(images, prompts).float().mean().item(),
        **{
            name: scorer.reward.score(images, list(prompts), [{}] * len(images)).mean().item()
            for name, scorer in scorers.items()
        },
    }


def _draw(
    run: Run, model: LatentModel, schedule: Schedule, plan: Sequence[PlannedImage], seed_shift: int = 0
) -> list[tuple[Sequence[PlannedImage], Drawn]]:
    """Draw planned images, batch by batch."""
    size = run.config.sample.batch_size
    return [
        (
            plan[first : first + size],
            draw_batch(
                model,
                schedule,
                [fixed.prompt for fixed in plan[first : first + size]],
                [fixed.seed + seed_shift for fixed in plan[first : first + size]],
                guidance_scale=run.config.sample.guidance_scale,
                reduction="mean",
            ),
        )
        for first in range(0, len(plan), size)
    ]
