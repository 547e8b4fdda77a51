"""The denoiser and the autoencoder take turns on a device, and draw and learn what they do when both stay there."""

import logging

import pytest
import torch
from conftest import tiny_values
from model_helpers import draw, load_tiny, put_on
from other_device import DEVICE, HERE, other_device
from tiny_pipelines import BUILDERS, SIZES

from rlcm_cli.config import parse_config
from rlcm_cli.errors import ConfigError
from rlcm_cli.measuring.dry_step import Probe
from rlcm_cli.measuring.memory import list_ways
from rlcm_cli.models.offloading import bring_denoiser, is_offloaded, keep_parts, offload_parts


@pytest.fixture(scope="module", params=["stable-diffusion", "stable-diffusion-3", "sana-sprint", "qwen-image"])
def folder(request, tmp_path_factory):
    build = next(iter(BUILDERS[request.param].values()))
    return build(tmp_path_factory.mktemp("models") / "model"), SIZES.get(request.param)


def device_of(part):
    (device,) = {parameter.device for parameter in part.parameters()}
    return device


def learn(model, path):
    config = parse_config(
        tiny_values(path, sample={"guidance_scale": 3.0, "steps": 2}, sampler={"kind": model.sampler.kind})
    )
    probe = Probe(config, model, samples=2, batch_size=2, steps=2)
    assert probe.ratio_drift(2) <= 4e-6
    probe.take_step(1)
    return torch.cat([p.grad.cpu().flatten() for p in probe.parameters.values() if p.grad is not None])


def test_parts_take_turns_and_images_and_gradients_stay_the_same(folder):
    seen = []
    path, size = folder
    plain, model = (load_tiny(path, image_size=size) for _ in range(2))
    with other_device() as device:
        put_on(plain, device)
        wanted, wanted_gradient = draw(plain, ["a cat"], [1], steps=2), learn(plain, path)
        put_on(model, device)
        offload_parts(model)
        assert device_of(model.denoiser) == device_of(model.pipeline.vae) == HERE
        for part in (model.denoiser, model.pipeline.vae):
            handle = part if part is model.denoiser else part.decoder
            handle.register_forward_hook(
                lambda *_: seen.append((device_of(model.denoiser), device_of(model.pipeline.vae)))
            )
        found = draw(model, ["a cat"], [1], steps=2)
        assert {(DEVICE, HERE), (HERE, DEVICE)} == {*seen}
        gradient = learn(model, path)
    assert torch.equal(found.images, wanted.images)
    assert wanted_gradient.norm() > 0
    assert (gradient - wanted_gradient).norm() <= 1e-5 * wanted_gradient.norm()


def test_the_denoiser_is_brought_for_what_an_optimizer_keeps(folder):
    model = load_tiny(folder[0], image_size=folder[1])
    with other_device() as device:
        put_on(model, device)
        bring_denoiser(model)  # where nothing is offloaded, nothing happens
        offload_parts(model)
        bring_denoiser(model)
        assert device_of(model.denoiser) == DEVICE
        keep_parts(model)
        assert device_of(model.denoiser) == device_of(model.pipeline.vae) == DEVICE
        assert not is_offloaded(model)


def test_on_a_cpu_nothing_is_moved_and_a_line_says_so(tiny_lcm, caplog):
    model = load_tiny(tiny_lcm)
    with caplog.at_level(logging.WARNING):
        offload_parts(model)
    assert not is_offloaded(model)
    assert "offload has no effect on the device cpu" in caplog.text


VALUES = {"task": "a", "rewards": {"compressibility": 1.0}, "runtime": {"offload": True}}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"model": {"quantize": "8bit"}}, "model.quantize 8bit"),
        ({"train": {"parameters": "full"}}, "train.parameters full"),
        ({"last_step": {"mode": "backprop"}}, "last_step.mode backprop"),
    ],
)
def test_what_it_does_not_go_with_is_refused(section, words):
    with pytest.raises(ConfigError, match=rf"runtime.offload does not go with {words}.*; remove one of them"):
        parse_config({**VALUES, **section})


def test_a_budget_lets_parts_take_turns_only_where_that_helps(tiny_lcm):
    config, model = parse_config(tiny_values(tiny_lcm)), load_tiny(tiny_lcm)
    assert list_ways(config, model) == [(False, False), (True, False)]
    model.device = torch.device("cuda")
    assert list_ways(config, model) == [(False, False), (True, False), (False, True), (True, True)]
    model.quantized = "8bit"
    assert len(list_ways(config, model)) == 2
