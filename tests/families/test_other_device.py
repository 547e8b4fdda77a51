"""No family leaves a tensor on the CPU: its pipelines draw, replay and learn on a device that refuses to mix."""

import dataclasses

import pytest
import torch
from conftest import tiny_values
from model_helpers import load_tiny, put_on
from other_device import HERE, OtherDeviceError, other_device
from tiny_pipelines import BUILDERS, SIZES, build_sd

from rlcm_cli.config import parse_config
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.measuring.dry_step import Probe

CASES = [
    pytest.param(builder, SIZES.get(kind), id=f"{kind} {name}", marks=[pytest.mark.slow] if number else [])
    for kind in BUILDERS
    for number, (name, builder) in enumerate(BUILDERS[kind].items())
]


def work(model, folder):
    """Draw two samples, replay them, train one step; return what came of it, on the CPU."""
    sample = {"guidance_scale": 3.0, "steps": 2}
    config = parse_config(tiny_values(folder, sample=sample, sampler={"kind": model.sampler.kind}))
    probe = Probe(config, model, samples=2, batch_size=2, steps=2)
    drift = probe.ratio_drift(2)
    probe.take_step(1)
    rollout = probe.data.learner.rollout
    # Without one is what only shapes the text beside the image in a last block, whose text is dropped.
    gradients = [p.grad for p in probe.parameters.values() if p.grad is not None]
    images = torch.rand(1, 3, *model.image_size, generator=seed_generator(1)).mul(255).to(torch.uint8)
    return {
        "latents": rollout.trajectories.latents_BSCHW,
        "log-probabilities": rollout.trajectories.log_probs_BA,
        "encoded images": model.encode_images(images).cpu(),
        "gradient": torch.cat([gradient.cpu().flatten() for gradient in gradients]),
    }, drift


@pytest.mark.parametrize(("builder", "size"), CASES)
def test_a_family_computes_on_another_device_what_it_computes_on_the_cpu(builder, size, tmp_path):
    folder = builder(tmp_path / "model")
    model = load_tiny(folder, image_size=size)
    wanted, _ = work(put_on(model, HERE), folder)
    with other_device() as device:
        found, drift = work(put_on(model, device), folder)
    assert drift <= 4e-6
    for name, tensor in wanted.items():
        assert found[name].device == HERE
        assert tensor.norm() > 0
        assert (found[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


LEFT_BEHIND = {
    "prediction": lambda family: {
        "predict": lambda model, latents, *rest: family.predict(model, latents, *rest) + torch.zeros(1)
    },
    "decoding": lambda family: {
        "autoencoder": dataclasses.replace(
            family.autoencoder, decode=lambda model, latents: family.autoencoder.decode(model, latents.cpu())
        )
    },
    "encoding": lambda family: {
        "text": dataclasses.replace(
            family.text,
            encode=lambda model, prompt: family.text.encode(dataclasses.replace(model, device=HERE), prompt),
        )
    },
}
"""Mistakes of a family: it forgets one tensor on the CPU."""


@pytest.mark.parametrize("mistake", LEFT_BEHIND)
def test_a_tensor_left_on_the_cpu_is_noticed(mistake, tmp_path):
    folder = build_sd(tmp_path / "model")
    model = load_tiny(folder)
    model.family = dataclasses.replace(model.family, **LEFT_BEHIND[mistake](model.family))
    with other_device() as device, pytest.raises(OtherDeviceError, match="beside others on the device"):
        work(put_on(model, device), folder)


# The device itself


def test_its_tensors_have_values_and_gradients():
    with other_device() as device:
        made = torch.tensor([1.0, 2.0], device=device)
        weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]).to(device))
        (made.new_tensor([2.0, 2.0]) * made * weight).sum().backward()
        assert weight.grad.device == made.device == device
        assert weight.grad.cpu().tolist() == [2.0, 4.0]
        weight.data = torch.zeros(2, device=device)
        assert weight.sum().item() == 0
        phases = torch.view_as_complex(torch.ones(3, 2).to(device))
        assert (phases * phases.conj()).real.sum().item() == 6
        made[[0]] = 5
        assert made[[1, 0]].tolist() == [2.0, 5.0]


def test_it_refuses_what_a_gpu_refuses_and_nothing_else():
    with other_device() as device:
        there, here = torch.ones(2, 2, device=device), torch.ones(2, 2)
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.stack([there.sum(), here.sum()]),
            lambda: there.add_(here),
            lambda: here[torch.tensor([0], device=device)],
            lambda: torch.where(there > 0, there, here),
            lambda: torch.randn(2, device=device, generator=torch.Generator()),
        ):
            with pytest.raises(OtherDeviceError):
                mixed()
        assert (there + here.sum()).device == device
        assert there[torch.tensor([1])].device == device
        there.copy_(3 * here)
        assert there.cpu().sum() == 12
        assert (here + there.cpu()).device == HERE
