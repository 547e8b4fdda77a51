"""What makes a model fit into memory, of every family: fewer bits, activations computed twice, tiles."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_values
from drawn_rollouts import SAMPLES, draw_rollout, ratio_drift
from model_helpers import attach_tiny, draw, shake_lora
from tiny_pipelines import BUILDERS, SIZES

from rlcm_cli.config import parse_config
from rlcm_cli.core.noise import seed_generator
from rlcm_cli.families import FAMILIES
from rlcm_cli.learning.log_probs import refresh_log_probs
from rlcm_cli.models.libraries import quiet_libraries
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.models.memory import checkpoint_activations, model_bytes, tile_decoding
from rlcm_cli.models.variant import Variant

PROMPTS = ["cat", "a dog on blue"]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """The family, and what loads a tiny pipeline of it."""
    name, build = next(iter(BUILDERS[request.param].items()))
    folder = build(tmp_path_factory.mktemp("models") / name)

    def load(quantize=None):
        with quiet_libraries():
            return load_model(
                str(folder),
                revision=None,
                dtype="float32",
                device="cpu",
                variant=Variant(SIZES.get(request.param), quantize),
            )

    return FAMILIES[request.param], folder, load


def take_gradient(model):
    latents = torch.randn(2, *model.latent_shape, generator=seed_generator(0))
    for parameter in lora_parameters(model).values():
        parameter.grad = None
    model.predict(latents, torch.tensor([900, 400]), model.encode_prompts(PROMPTS), 4.0).square().mean().backward()
    return {name: p.grad.clone() for name, p in lora_parameters(model).items() if p.grad is not None}


def largest(tensors):
    return max(tensor.abs().max() for tensor in tensors)


def test_checkpointed_gradients_are_those_without(case):
    family, _, load = case
    model = load()
    attach_tiny(model, target_modules=family.lora_targets)
    shake_lora(model)
    plain = take_gradient(model)
    checkpoint_activations(model, True)
    again = take_gradient(model)
    assert plain.keys() == again.keys()
    assert largest(plain[name] - again[name] for name in plain) <= 1e-5 * largest(plain.values())


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_lora_on_a_quantised_denoiser_is_drawn_and_trained_with(case, bits):
    family, folder, load = case
    whole, model = load(), load(bits)
    assert model_bytes(model) < model_bytes(whole)
    assert model.digest != whole.digest
    expected, found = (draw(one, PROMPTS, [1, 2], guidance_scale=1.0, steps=1) for one in (whole, model))
    difference = (found.images.float() - expected.images.float()).abs()
    assert 0 < difference.mean() < 0.5 * expected.images.float().std()

    attach_tiny(model, target_modules=family.lora_targets)
    shake_lora(model)
    gradients = take_gradient(model)
    assert len(gradients) > 0.7 * len(lora_parameters(model))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert sum(bool(gradient.any()) for gradient in gradients.values()) > 0.7 * len(gradients)

    sample = {"samples": SAMPLES, "guidance_scale": 3.0, "shards": 1}
    values = tiny_values(folder, sample=sample, sampler={"kind": model.sampler.kind})
    values["model"]["quantize"] = bits
    config = parse_config(values)
    rollout = draw_rollout([model], config)
    if bits == "8bit":
        # What a layer is given is rounded to 8 bits, so that the last bits of a batch tell.
        rollout, drift = refresh_log_probs(model, rollout, 4)
        assert drift <= 2e-2
        assert ratio_drift(model, rollout, config, 4) <= 1e-4
    else:
        assert ratio_drift(model, rollout, config, 5) <= 4e-6


def test_tiles_are_nearly_the_whole_image(case):
    _, _, load = case
    model = load()
    height, width = model.image_size
    model.set_image_size(2 * height, 2 * width)
    latents = torch.randn(1, *model.latent_shape, generator=seed_generator(0))
    with torch.no_grad():
        whole = model.decode_floats(latents)
        before = model.digest
        tile_decoding(model, height)
        assert model.digest != before
        tiled = model.decode_floats(latents)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    # Norms over a tile of random weights differ from those over the image: 0.73 is the least of the families.
    assert torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1] > 0.6
