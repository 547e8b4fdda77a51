"""What a LoRA step of a real architecture takes in memory, counted from the shapes of its tensors: no GPU, no weights.

    python -m examples.benchmarks.memory_estimate --architecture sd15-lcm --size 512 --dtype bfloat16

The model's forward and backward run on tensors that have shapes and no content (`FakeTensorMode`), and the bytes alive
at once are counted, with and without checkpointed activations, at one and two transitions; from these follow the
micro-batches that fit into 8, 12 and 24 GB. Workspaces of kernels and the driver's own part come on top.
"""

from __future__ import annotations

import argparse

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rlcm_cli.config import LoraSettings
from rlcm_cli.core.allocations import PeakAllocations
from rlcm_cli.core.gaussian import gaussian_log_prob
from rlcm_cli.core.throughput import largest_that_fits
from rlcm_cli.models import architectures
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.models.lora import attach_lora, lora_parameters
from rlcm_cli.models.memory import checkpoint_activations

BUDGETS_GB = (8, 12, 24)
GUIDANCE = 8.0


def build(architecture: str, dtype: str, size: int) -> LatentModel:
    """Build a model of fake tensors with an adapter on it; call it within the mode."""
    # Fake parameters cannot be moved or cast, and need not be.
    architectures.freeze_pipeline = lambda pipeline, family, place: pipeline.unet.requires_grad_(False)
    model = architectures.build_architecture(architecture, dtype=dtype, device="cpu", image_size=(size, size))
    torch.nn.Module._apply = lambda self, fn, recurse=True: self
    lora = LoraSettings()
    attach_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, run_seed=0)
    return model


def weight_bytes(model: LatentModel) -> int:
    """Give the bytes of all parameters and buffers, with the adapter's two moments of Adam."""
    modules = [part for part in model.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    moments = 2 * sum(parameter.nbytes for parameter in lora_parameters(model).values())
    return sum(tensor.nbytes for tensor in tensors) + moments


def step_bytes(model: LatentModel, transitions: int) -> int:
    """Give the peak of a forward and a backward pass, weights left out."""
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    states = torch.randn(transitions, *model.latent_shape, dtype=model.dtype)
    conditioning = model.encode_prompts([""] * transitions)
    with PeakAllocations() as counted:
        mean = model.predict(states, torch.randint(0, 999, (transitions,)), conditioning, GUIDANCE)
        gaussian_log_prob(states, mean, torch.ones(()), "mean").exp().mean().backward()
    return counted.peak


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=["sd15-lcm"], default="sd15-lcm")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16")
    arguments = parser.parse_args()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(arguments.architecture, arguments.dtype, arguments.size)
        weights = weight_bytes(model)
        print(f"{arguments.architecture}, {arguments.size} pixels, {arguments.dtype}: weights {weights / 1e9:.2f} GB")
        for checkpointing in (False, True):
            checkpoint_activations(model, checkpointing)
            one, two = (weights + step_bytes(model, count) for count in (1, 2))
            fitting = [
                largest_that_fits(lambda count: one + (count - 1) * (two - one) <= budget * 1e9, 1024)  # noqa: B023
                for budget in BUDGETS_GB
            ]
            print(
                f"{'with' if checkpointing else 'without'} checkpointing: {one / 1e9:.2f} GB for one transition, "
                f"{(two - one) / 1e9:.2f} GB each more; micro-batch "
                + ", ".join(f"{count} in {budget} GB" for count, budget in zip(fitting, BUDGETS_GB, strict=True))
            )


if __name__ == "__main__":
    main()
