"""What denoising objectives do to a distilled model: sharpness and recognition of a run's fixed images.

python -m examples.benchmarks.blur runs/nft runs/awm runs/dpo runs/ppo
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from examples.benchmark.classifier import recognise
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.rewards.pixels import in_parts, laplacian_variance
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.evaluations import read_evaluation


def main() -> None:
    """Measure the images of each evaluated checkpoint, and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    print("| run | objective | checkpoint | sharpness | kB | recognised |\n|---|---|---|---|---|---|")
    for folder in parser.parse_args().run:
        run = open_run(folder)
        for number in run.layout.evaluations():
            drawn = read_evaluation(run.layout, number)
            images = torch.from_numpy(drawn.images)
            sharpness = in_parts(laplacian_variance, images).mean().item()
            kilobytes = statistics.mean(jpeg_kilobytes(image) for image in images)
            share = recognise(images, drawn.prompts).float().mean().item()
            kind = run.config.objective.kind
            print(f"| {folder.name} | {kind} | {number} | {sharpness:.0f} | {kilobytes:.2f} | {share:.1%} |")


if __name__ == "__main__":
    main()
