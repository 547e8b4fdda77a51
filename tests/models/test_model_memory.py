"""Checkpointed activations and sliced decoding change memory, not results."""

import pytest
import torch
from model_helpers import attach_tiny, draw, load_tiny, shake_lora
from tiny_pipelines import build_sd

from rlcm_cli.core.allocations import PeakAllocations
from rlcm_cli.errors import ModelError
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.models.memory import checkpoint_activations, model_bytes, slice_decoding, tile_decoding
from rlcm_cli.models.variant import Variant

GUIDANCE = 4.0


def load(folder, dtype="float32"):
    model = load_tiny(folder, dtype)
    attach_tiny(model)
    shake_lora(model)
    return model


@pytest.fixture
def model(tiny_lcm):
    return load(tiny_lcm)


def take_gradient(model):
    """Gradient of the adapter by name, and the peak of allocations; the latents need no gradient, as in training."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, *model.latent_shape, generator=generator).to(model.dtype)
    conditioning = model.encode_prompts(["a cat", "a dog", "a bee", "an owl"])
    parameters = lora_parameters(model)
    for parameter in parameters.values():
        parameter.grad = None
    with PeakAllocations() as counted:
        output = model.predict(latents, torch.tensor([999, 759, 499, 259]), conditioning, GUIDANCE)
        output.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}, counted.peak


def test_checkpointing_gives_the_same_gradient_in_less_memory(model):
    plain, plain_peak = take_gradient(model)
    checkpoint_activations(model, True)
    again, peak = take_gradient(model)
    assert all(gradient.abs().max() > 0 for name, gradient in plain.items() if "lora_B" in name)
    scale = max(gradient.abs().max() for gradient in plain.values())
    assert max((plain[name] - again[name]).abs().max() for name in plain) <= 1e-6 * scale
    assert peak < 0.9 * plain_peak
    checkpoint_activations(model, False)
    assert take_gradient(model)[1] > 0.99 * plain_peak


def test_checkpointing_computes_anew_with_the_kernels_of_the_forward_pass(tiny_lcm):
    """In 16 bits the attention of few tokens has a kernel of its own choice."""
    model = load(tiny_lcm, "bfloat16")
    plain, _ = take_gradient(model)
    checkpoint_activations(model, True)
    again, _ = take_gradient(model)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_checkpointing_leaves_sampling_as_it_is(model):
    before = draw(model, ["a cat", "a dog"], [1, 2])
    checkpoint_activations(model, True)
    after = draw(model, ["a cat", "a dog"], [1, 2])
    assert torch.equal(before.trajectories.latents_BSCHW, after.trajectories.latents_BSCHW)
    assert torch.equal(before.images, after.images)


def test_sliced_decoding_gives_the_same_images_in_less_memory(model):
    latents = torch.randn(8, *model.latent_shape, generator=torch.Generator().manual_seed(0))

    def decode():
        with PeakAllocations() as counted:
            images = model.decode_floats(latents)
        return images.detach(), counted.peak

    whole, whole_peak = decode()
    slice_decoding(model, True)
    sliced, peak = decode()
    assert (whole - sliced).abs().max() <= 1e-3  # of 255
    assert peak < 0.6 * whole_peak


def test_an_autoencoder_without_tiles_is_refused(model):
    with pytest.raises(ModelError, match=r"decodes no tiles with the autoencoder AutoencoderTiny; leave it out"):
        tile_decoding(model)


def test_the_bytes_of_a_model_are_those_of_its_weights(model):
    weights = [
        p for part in (model.denoiser, model.pipeline.vae, model.pipeline.text_encoder) for p in part.parameters()
    ]
    least = sum(4 * parameter.numel() for parameter in weights)
    assert least <= model_bytes(model) <= least + 10_000


def test_a_size_that_the_model_cannot_have_is_refused(tmp_path):
    # Halved once below its latents of 8, which are half of the pixels.
    model = load_model(str(build_sd(tmp_path / "sd")), revision=None, dtype="float32", device="cpu")
    for size in (0, 3, 18):
        with pytest.raises(ModelError, match=rf"images of {size} pixels: this model's are multiples of 4 pixels"):
            model.set_image_size(size, size)
    model.set_image_size(24, 24)
    assert model.image_size == (24, 24)


def test_a_model_is_loaded_at_an_image_size(tiny_lcm):
    model = load_model(str(tiny_lcm), revision=None, dtype="float32", device="cpu", variant=Variant((24, 24)))
    attach_tiny(model)
    assert draw(model, ["a cat"], [1]).images.shape == (1, 3, 24, 24)
