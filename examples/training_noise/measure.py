"""Draw the fixed images of runs that were trained with some noise (sampler.eta), with that noise and without any.

python -m examples.training_noise.measure runs/eta-*
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from examples.benchmark.classifier import recognise
from examples.few_steps.measure import draw
from rlcm_cli.config import override_section
from rlcm_cli.phases.evaluate import plan_evaluation
from rlcm_cli.rewards.compressibility import jpeg_kilobytes
from rlcm_cli.runs.policy import load_checkpoint, load_policy_model
from rlcm_cli.runs.run import open_run
from rlcm_cli.store.checkpoint import latest_checkpoint


def main() -> None:
    """Draw, measure, print a row for each run, checkpoint and noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    print("| trained with | seed | checkpoint | drawn with | kB | recognised |\n|---|---|---|---|---|---|")
    for folder in parser.parse_args().run:
        run = open_run(folder)
        trained = run.config.sampler.eta
        model, plan = load_policy_model(run.config), plan_evaluation(run.config, run.prompts)
        for checkpoint in (0, latest_checkpoint(run.layout)):
            load_checkpoint(run, model, checkpoint)
            for eta in sorted({0.0, trained}, reverse=True):
                sampler = override_section(run.config.sampler, {"eta": eta})
                images = draw(run, model, plan, run.config.sample.steps, sampler)
                kilobytes = statistics.mean(jpeg_kilobytes(image) for image in images)
                share = recognise(images, [fixed.prompt for fixed in plan]).float().mean().item()
                print(
                    f"| {trained} | {run.config.seed} | {checkpoint} | {eta} | {kilobytes:.3f} | {share:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
