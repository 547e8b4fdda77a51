"""What is measured on the fixed images of a checkpoint, and what it had cost to get there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from examples.benchmark.classifier import recognise
from examples.benchmark.results import Costs
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.run import Run
from rlcm_cli.store.evaluations import read_evaluation
from rlcm_cli.store.metrics import IterationMetrics, read_metrics


def measure_checkpoint(run: Run, checkpoint: int) -> dict[str, object]:
    """Measure the images of an evaluation, those of prompts that were trained on and of held-out ones apart."""
    evaluation = read_evaluation(run.layout, checkpoint)
    images = torch.from_numpy(evaluation.images)
    values = {
        "kilobytes": torch.tensor([jpeg_kilobytes(image) for image in images]),
        "recognised": recognise(images, evaluation.prompts).float(),
        **{name: torch.from_numpy(given) for name, given in evaluation.rewards.items()},
    }
    held_out = torch.from_numpy(evaluation.held_out)
    costs = count_costs(read_metrics(run.layout)[:checkpoint])
    return {
        "checkpoint": checkpoint,
        **asdict(costs),
        "all": _means(values, torch.ones_like(held_out)),
        "training_prompts": _means(values, ~held_out),
        "held_out_prompts": _means(values, held_out),
    }


def count_costs(metrics: Sequence[IterationMetrics]) -> Costs:
    """Add up the costs of iterations."""
    return Costs(
        sum(one.cpu_seconds or 0.0 for one in metrics),
        sum(one.samples or 0 for one in metrics),
        sum(one.forwards or 0 for one in metrics),
    )


def _means(values: Mapping[str, Tensor], rows: Tensor) -> dict[str, float]:
    return {name: statistics.fmean(given[rows].tolist()) for name, given in values.items() if rows.any()}
