"""How much of the loop's wall time is the model itself.

    python -m examples.benchmarks.loop_overhead --task compression --iterations 10
    python -m examples.benchmarks.loop_overhead --task ddpo-compression --iterations 3

Runs the loop's own phase functions in one process, and between its iterations the bare cost of what they ask
of the model, at the same batch sizes: the U-Net's forwards of sampling (of both halves where guidance has no
classifier), the forwards and backwards of training (with the base model's forward where there is a KL penalty), and
the decodes. The two take turns, so that a machine whose speed drifts slows both. Model loading, the evaluations and
the first iteration (warm-up) are left out. Prints the ratio of the sums: of the clock on the wall, and of processor
time, which tells more where other processes share the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from examples.benchmarks.costs import Cost, describe_machine, measure, show_spread, spread, write_json
from examples.benchmarks.rlcm_side import RlcmSide
from rlcm_cli.config import Config, resolve_config
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import base_model, folded_lora, lora_parameters
from rlcm_cli.runs.schedules import training_schedule


def run_bare_iteration(model: LatentModel, config: Config) -> None:
    """Do an iteration's forwards, backwards and decodes, and nothing else."""
    settings = config.sample
    embeds = model.encode_prompts([""])["prompt_embeds"].to(model.device)
    embedding, rows_an_image = None, 1
    if model.guided_by_embedding:
        embedding = model.pipeline.get_guidance_scale_embedding(
            torch.full((1,), settings.guidance_scale - 1), model.denoiser.config.time_cond_proj_dim
        ).to(model.device, model.dtype)
    elif settings.guidance_scale > 1:
        rows_an_image = 2

    def call_unet(count: int) -> torch.Tensor:
        rows = rows_an_image * count
        output: torch.Tensor = model.denoiser(
            torch.randn(rows, *model.latent_shape, device=model.device, dtype=model.dtype),
            torch.full((rows,), 999, device=model.device),
            timestep_cond=None if embedding is None else embedding.expand(rows, -1),
            encoder_hidden_states=embeds.expand(rows, -1, -1),
            return_dict=False,
        )[0]
        return output

    with torch.no_grad(), folded_lora(model):
        for size in batches(settings.samples, settings.batch_size):
            for _ in range(settings.steps):
                latents = call_unet(size)
            model.pipeline.vae.decode(latents[:size], return_dict=False)
    actions = round(config.train.timestep_fraction * training_schedule(config, model).actions)
    transitions = (config.train.minibatch_size or settings.samples) * actions
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="compression")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = resolve_config([arguments.task], assignments=arguments.assignments)
    loop, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        side = RlcmSide(Path(folder) / "run", config)
        for _ in range(arguments.iterations + 1):
            loop.append(sum(side.iterate().values(), Cost(0.0, 0.0)))
            bare.append(measure(lambda: run_bare_iteration(side.model, config)))
    loop, bare = loop[1:], bare[1:]
    print(f"{arguments.task} on {config.model.name}, {torch.get_num_threads()} threads, {len(loop)} iterations:")
    report = {}
    for clock in ("wall", "processor"):
        ours, model = ([getattr(cost, clock) for cost in costs] for costs in (loop, bare))
        ratios = spread([whole / alone for whole, alone in zip(ours, model, strict=True)])
        ratio = sum(ours) / sum(model)
        report[clock] = {"loop": sum(ours), "bare": sum(model), "ratio": ratio, "by_iteration": ratios}
        print(f"{clock} time: loop {sum(ours):.2f} s, bare model {sum(model):.2f} s, ratio {ratio:.3f}")
        print(f"    by iteration {show_spread(ratios, 3)}")
    write_json(arguments.json, {"machine": describe_machine(str(side.model.device)), "task": arguments.task, **report})


if __name__ == "__main__":
    main()
