"""What is measured of the policy that a run ends with, beside its rewards: how much was paid for them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from examples.benchmark.classifier import extract_features, recognise
from examples.benchmark.measure import draw_planned
from rlcm_cli.core.gaussian import gaussian_kl
from rlcm_cli.core.schedule import Schedule, transition
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.evaluate import PlannedImage, plan_evaluation
from rlcm_cli.phases.sample import Drawn
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


def measure_finals(run: Run, model: LatentModel) -> dict[str, Any]:
    """Measure the policy of a run's last checkpoint, which `model` holds.

    - `second_judge`, `diversity`: of the fixed images of the first checkpoint, and of the last one.
    - `coverage`: the same two; of the base model's images of the same prompts and other seeds.
    - `kl`: of trajectories to the base model, in nats per value of the latents.
    - `steps`: number of steps → what `measure_images` says of images drawn in so many, two of each prompt.
    """
    numbers = run.layout.evaluations()
    images = [torch.from_numpy(read_evaluation(run.layout, number).images) for number in (numbers[0], numbers[-1])]
    plan = plan_evaluation(run.config, run.prompts)
    prompts = [fixed.prompt for fixed in plan]
    judge = load_reward(RewardSpec(SECOND_JUDGE))
    schedule = drawing_schedule(run.config.sampler, run.config.sample.steps, model)
    drawn = draw_planned(run, model, schedule, plan)
    with model.trained.base_model(model):
        others = draw_planned(run, model, schedule, [replace(fixed, seed=fixed.seed + 1) for fixed in plan])
    features = [extract_features(own) for own in images]
    base = extract_features(torch.cat([batch.images for batch in others]))
    scorers = load_scorers(run)
    return {
        "second_judge": [judge.score(own, prompts, [{}] * len(own)).mean().item() for own in images],
        "diversity": [pairwise_distance(own, prompts) for own in features],
        "coverage": [coverage(base, own) for own in features],
        "kl": trajectory_kl(run, model, schedule, prompts, drawn),
        "steps": {str(steps): measure_steps(run, model, plan, scorers, steps) for steps in STEPS},
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
    radius = among.kthvalue(min(neighbours, len(base) - 1), dim=1).values
    return (torch.cdist(base, features).amin(1) <= radius).float().mean().item()


def trajectory_kl(
    run: Run, model: LatentModel, schedule: Schedule, prompts: Sequence[str], batches: Sequence[Drawn]
) -> float:
    """Return KL(policy ‖ base) of whole trajectories, over those that the policy drew, per value of the latents."""
    total, first, guidance = 0.0, 0, run.config.sample.guidance_scale
    for drawn in batches:
        trajectories = drawn.trajectories
        conditioning = model.encode_prompts(prompts[first : first + len(trajectories)])
        first += len(trajectories)
        for position, call in zip(trajectories.positions.tolist(), trajectories.calls_A.tolist(), strict=True):
            states = trajectories.latents_BSCHW[:, position]
            calls = torch.full((len(states),), call)
            given = (states, schedule.timesteps[calls], conditioning, guidance)
            with torch.no_grad():
                own = transition(schedule, model.predict(*given), states, calls)
                with model.trained.base_model(model):
                    base = transition(schedule, model.predict(*given), states, calls)
            total += gaussian_kl(own.mean, base.mean, own.std, "mean").sum().item()
    return total / len(prompts)


def measure_steps(
    run: Run, model: LatentModel, plan: Sequence[PlannedImage], scorers: Mapping[str, Scorer], steps: int
) -> dict[str, float]:
    """Measure what the policy draws in a number of steps: the fixed images, two of each prompt."""
    places = run.config.evaluate.images_per_prompt
    chosen = [fixed for number, fixed in enumerate(plan) if number % places < 2]
    drawn = draw_planned(run, model, drawing_schedule(run.config.sampler, steps, model), chosen)
    images, prompts = torch.cat([batch.images for batch in drawn]), [fixed.prompt for fixed in chosen]
    return {
        "kilobytes": statistics.fmean(map(jpeg_kilobytes, images)),
        "recognised": recognise(images, prompts).float().mean().item(),
        **{
            name: scorer.reward.score(images, prompts, [{}] * len(images)).mean().item()
            for name, scorer in scorers.items()
        },
    }
