"""Checkpointed activations and sliced decoding change memory, not results; architectures have their real sizes."""

import pytest
import torch
from model_helpers import attach_tiny, draw, load_tiny, shake_lora
from tiny_pipelines import build_sd

from rlcm_cli.core.allocations import PeakAllocations
from rlcm_cli.errors import ModelError
from rlcm_cli.models import architectures
from rlcm_cli.models.architectures import ARCHITECTURES, build_architecture
from rlcm_cli.models.loading import load_model
from rlcm_cli.models.lora import lora_parameters
from rlcm_cli.models.memory import checkpoint_activations, model_bytes, slice_decoding

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


def test_the_bytes_of_a_model_are_those_of_its_weights(model):
    weights = [
        p for part in (model.denoiser, model.pipeline.vae, model.pipeline.text_encoder) for p in part.parameters()
    ]
    least = sum(4 * parameter.numel() for parameter in weights)
    assert least <= model_bytes(model) <= least + 10_000


# Architectures

PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd15-lcm": {"unet": 859_520_964 + 256 * 320, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl-lcm": {
        "unet": 2_567_463_684 + 256 * 320,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
"""Parameters of the published weights; an LCM's U-Net has a projection of the guidance embedding more."""


@pytest.fixture
def on_paper(monkeypatch):
    """Modules without memory."""
    monkeypatch.setattr(architectures, "select_device", torch.device)
    monkeypatch.setattr(architectures, "freeze_pipeline", lambda pipeline, family, place: None)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.usefixtures("on_paper")
def test_an_architecture_has_as_many_parameters_as_the_published_weights(name):
    model = build_architecture(name, dtype="bfloat16", device="meta")
    parts = {part: getattr(model.pipeline, part) for part in PUBLISHED[name]}
    assert {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()} == PUBLISHED[name]
    assert all(p.dtype == torch.bfloat16 for module in parts.values() for p in module.parameters())
    assert model.sampler.kind == ("lcm" if name.endswith("lcm") else "ddim")
    assert model.guided_by_embedding == name.endswith("lcm")
    assert model.image_size == ((1024, 1024) if name == "sdxl-lcm" else (512, 512))
    assert model.pipeline.tokenizer("a cat", padding="max_length").input_ids[76] is not None
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.usefixtures("on_paper")
def test_an_architecture_is_built_at_a_size():
    model = build_architecture("sd15-lcm", dtype="bfloat16", device="meta", image_size=(768, 768))
    assert (model.latent_shape, model.image_size) == ((4, 96, 96), (768, 768))


def test_the_embedded_model_is_an_architecture_with_its_own_weights():
    assert ARCHITECTURES[0] == "emoji-lcm"
    model = build_architecture("emoji-lcm", dtype="float32", device="cpu", image_size=(128, 128))
    assert model.image_size == (128, 128)
    images = draw(model, ["a cat"], [0], steps=2).images
    assert images.shape == (1, 3, 128, 128)


def test_what_cannot_be_built_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"unknown architecture 'sd16'; there are emoji-lcm, sdxl-lcm, sd15-lcm, sd15"
    ):
        build_architecture("sd16", dtype="float32", device="cpu")
    # Halved once below its latents of 8, which are half of the pixels.
    model = load_model(str(build_sd(tmp_path / "sd")), revision=None, dtype="float32", device="cpu")
    for size in (0, 3, 18):
        with pytest.raises(ModelError, match=rf"images of {size} pixels: this model's are multiples of 4 pixels"):
            model.set_image_size(size, size)
    model.set_image_size(24, 24)
    assert model.image_size == (24, 24)


def test_a_model_is_loaded_at_an_image_size(tiny_lcm):
    model = load_model(str(tiny_lcm), revision=None, dtype="float32", device="cpu", image_size=(24, 24))
    attach_tiny(model)
    assert draw(model, ["a cat"], [1]).images.shape == (1, 3, 24, 24)
