"""How much of the loop's wall time is the model itself.

    python -m examples.benchmarks.loop_overhead --task compression --iterations 10

Runs the loop's own phase functions in one process, and between its iterations the bare cost of what they ask
of the model, at the same batch sizes: the U-Net's forwards of sampling, the forwards and backwards of training
(with the base model's forward where there is a KL penalty), and the decodes. The two take turns, so that a
machine whose speed drifts slows both. Model loading, the evaluations and the first iteration (warm-up) are left
out. Prints the ratio of the sums.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from rlcm_cli.config import Config, resolve_config
from rlcm_cli.models.diffusion import DiffusionModel
from rlcm_cli.models.lora import base_model, lora_parameters
from rlcm_cli.phases.policy import load_policy_model
from rlcm_cli.phases.run import create_run
from rlcm_cli.phases.sample import sample
from rlcm_cli.phases.score import load_scorers, score
from rlcm_cli.phases.train import train


def run_bare_iteration(model: DiffusionModel, config: Config) -> None:
    """Do an iteration's forwards, backwards and decodes, and nothing else."""
    settings = config.sample
    embeds = model.encode_prompts([""])["prompt_embeds"].to(model.device)
    embedding = model.pipeline.get_guidance_scale_embedding(
        torch.full((1,), settings.guidance_scale - 1), model.unet.config.time_cond_proj_dim
    ).to(model.device, model.dtype)

    def call_unet(count: int) -> torch.Tensor:
        output: torch.Tensor = model.unet(
            torch.randn(count, *model.latent_shape, device=model.device, dtype=model.dtype),
            torch.full((count,), 999, device=model.device),
            timestep_cond=embedding.expand(count, -1),
            encoder_hidden_states=embeds.expand(count, -1, -1),
            return_dict=False,
        )[0]
        return output

    with torch.no_grad():
        for size in batches(settings.samples, settings.batch_size):
            for _ in range(settings.steps):
                latents = call_unet(size)
            model.pipeline.vae.decode(latents, return_dict=False)
    transitions = (config.train.minibatch_size or settings.samples) * (settings.steps - 1)
    updates = -(-settings.samples // (config.train.minibatch_size or settings.samples)) * config.train.inner_epochs
    for _ in range(updates):
        for size in batches(transitions, config.runtime.micro_batch_size):
            call_unet(size).float().square().mean().backward()
            if config.train.kl_weight:
                with torch.no_grad(), base_model(model):
                    call_unet(size)
        for parameter in lora_parameters(model).values():
            parameter.grad = None


def batches(total: int, size: int) -> Iterator[int]:
    """Give the sizes of the batches that `total` is cut into."""
    for first in range(0, total, size):
        yield min(size, total - first)


def timed(work: Callable[[], object]) -> float:
    """Give the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="compression")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    config = resolve_config([arguments.task], assignments=arguments.assignments)
    model = load_policy_model(config)

    loop_seconds, bare_seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder) / "run", config)
        rewards = load_scorers(run)
        for iteration in range(arguments.iterations + 1):
            whole = timed(lambda: [*sample(run, model), *score(run, rewards), *train(run, model)])
            bare = timed(lambda: run_bare_iteration(model, config))
            if iteration:
                loop_seconds.append(whole)
                bare_seconds.append(bare)
    ratios = [whole / bare for whole, bare in zip(loop_seconds, bare_seconds, strict=True)]
    print(
        f"{arguments.task} on {config.model.name}, {torch.get_num_threads()} threads, {len(ratios)} iterations: "
        f"loop {sum(loop_seconds):.2f} s, bare model {sum(bare_seconds):.2f} s, "
        f"ratio {sum(loop_seconds) / sum(bare_seconds):.3f} "
        f"(per iteration {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
