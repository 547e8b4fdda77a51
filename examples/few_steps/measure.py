"""Draw a run's fixed images in 1, 2, 4 and 8 steps, before and after training, and measure what is left of both aims.

python -m examples.few_steps.measure runs/compression
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

from examples.benchmark.classifier import recognise
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases.evaluate import PlannedImage, plan_evaluation
from rlcm_cli.phases.sample import REDUCTION, draw_batch
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.policy import load_checkpoint, load_policy_model
from rlcm_cli.runs.run import Run, open_run
from rlcm_cli.runs.schedules import drawing_schedule
from rlcm_cli.samplers import SamplerSettings
from rlcm_cli.store.checkpoint import latest_checkpoint

STEPS = (1, 2, 4, 8)


def draw(
    run: Run, model: LatentModel, plan: list[PlannedImage], steps: int, sampler: SamplerSettings | None = None
) -> Tensor:
    """Draw the fixed images with the weights that the model has, uint8 [B, 3, H, W]; `sampler`: None for the run's."""
    sample = run.config.sample.model_copy(update={"steps": steps})
    schedule = drawing_schedule(sampler or run.config.sampler, steps, model)
    parts = [plan[first : first + sample.batch_size] for first in range(0, len(plan), sample.batch_size)]
    return torch.cat(
        [
            draw_batch(
                model,
                schedule,
                [fixed.prompt for fixed in part],
                [fixed.seed for fixed in part],
                guidance_scale=sample.guidance_scale,
                reduction=REDUCTION,
            ).images
            for part in parts
        ]
    )


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    print("| run | checkpoint | steps | kB | recognised |\n|---|---|---|---|---|")
    for folder in parser.parse_args().run:
        run = open_run(folder)
        model, plan = load_policy_model(run.config), plan_evaluation(run.config, run.prompts)
        for checkpoint in (0, latest_checkpoint(run.layout)):
            load_checkpoint(run, model, checkpoint)
            for steps in STEPS:
                images = draw(run, model, plan, steps)
                kilobytes = statistics.mean(jpeg_kilobytes(image) for image in images)
                share = recognise(images, [fixed.prompt for fixed in plan]).float().mean().item()
                print(f"| {folder.name} | {checkpoint} | {steps} | {kilobytes:.2f} | {share:.1%} |")


if __name__ == "__main__":
    main()
