"""What is measured on the fixed images of a checkpoint, and what it had cost to get there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from examples.benchmark.classifier import recognise
from examples.benchmark.results import Costs
from rlcm_cli.core.schedule import Schedule
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.weights import exchanged_weights
from rlcm_cli.phases.evaluate import PlannedImage, plan_evaluation
from rlcm_cli.phases.sample import Drawn, draw_batch
from rlcm_cli.phases.score import load_scorers
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.run import Run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.store.checkpoint import read_average
from rlcm_cli.store.evaluations import Evaluation, read_evaluation
from rlcm_cli.store.metrics import IterationMetrics, read_metrics


def measure_checkpoint(run: Run, checkpoint: int) -> dict[str, object]:
    """Measure the images of an evaluation, those of prompts that were trained on and of held-out ones apart."""
    evaluation = read_evaluation(run.layout, checkpoint)
    rewards = {name: torch.from_numpy(given) for name, given in evaluation.rewards.items()}
    return _describe(run, evaluation, torch.from_numpy(evaluation.images), rewards)


def measure_average(run: Run, model: LatentModel, checkpoint: int) -> dict[str, object]:
    """Measure the same images as a checkpoint's moving average of the weights draws them (`train.ema_decay`)."""
    evaluation, average = read_evaluation(run.layout, checkpoint), read_average(run.layout, checkpoint)
    if average is None:  # nothing is trained yet
        return measure_checkpoint(run, checkpoint)
    plan = plan_evaluation(run.config, run.prompts)
    schedule = drawing_schedule(run.config.sampler, run.config.sample.steps, model)
    trained = model.trained
    with exchanged_weights(trained.parameters(model), trained.bind(model, average)):
        images = torch.cat([drawn.images for drawn in draw_planned(run, model, schedule, plan)])
    rewards = {
        name: scorer.reward.score(images, evaluation.prompts, [{}] * len(images)).cpu()
        for name, scorer in load_scorers(run).items()
    }
    return _describe(run, evaluation, images, rewards)


def _describe(run: Run, evaluation: Evaluation, images: Tensor, rewards: Mapping[str, Tensor]) -> dict[str, object]:
    values = {
        "kilobytes": torch.tensor([jpeg_kilobytes(image) for image in images]),
        "recognised": recognise(images, evaluation.prompts).float(),
        **rewards,
    }
    held_out = torch.from_numpy(evaluation.held_out)
    costs = count_costs(read_metrics(run.layout)[: evaluation.checkpoint])
    return {
        "checkpoint": evaluation.checkpoint,
        **asdict(costs),
        "all": _means(values, torch.ones_like(held_out)),
        "training_prompts": _means(values, ~held_out),
        "held_out_prompts": _means(values, held_out),
    }


def draw_planned(run: Run, model: LatentModel, schedule: Schedule, plan: Sequence[PlannedImage]) -> list[Drawn]:
    """Draw planned images, in batches as the run's."""
    sample = run.config.sample
    parts = [plan[first : first + sample.batch_size] for first in range(0, len(plan), sample.batch_size)]
    return [
        draw_batch(
            model,
            schedule,
            [fixed.prompt for fixed in part],
            [fixed.seed for fixed in part],
            guidance_scale=sample.guidance_scale,
            reduction="mean",
        )
        for part in parts
    ]


def count_costs(metrics: Sequence[IterationMetrics]) -> Costs:
    """Add up the costs of iterations."""
    return Costs(
        sum(one.cpu_seconds or 0.0 for one in metrics),
        sum(one.samples or 0 for one in metrics),
        sum(one.forwards or 0 for one in metrics),
    )


def _means(values: Mapping[str, Tensor], rows: Tensor) -> dict[str, float]:
    return {name: statistics.fmean(given[rows].tolist()) for name, given in values.items() if rows.any()}
